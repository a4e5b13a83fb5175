// The tree of a program: files of functions and blocks.  Every node carries the span of its text.
#ifndef FRONTEND_AST_H
#define FRONTEND_AST_H
#include <stdio.h>
#include "frontend/num.h"
#include "ir/base/diag.h"
#include "ir/base/str.h"
#include "ir/base/vec.h"

typedef struct Expr   Expr;
typedef struct Stmt   Stmt;
typedef struct Entry  Entry;
typedef struct Fn     Fn;
typedef struct Module Module;
typedef VEC(Expr *)  Exprs;
typedef VEC(Stmt *)  Stmts;
typedef VEC(Entry *) Entries;

// ---- expressions ----------------------------------------------------------------------------------------

typedef enum {
    X_NAME,      // name
    X_MODEL,     // `model` in weights: the root of all paths
    X_NUM,       // num
    X_QUANTITY,  // num unit
    X_STR,       // "name"
    X_BOOL,      // num is 0 or 1
    X_NONE,
    X_INF,
    X_DOT,       // .name of the block's subject
    X_REST,      // ... in a list or an index
    X_LIST,      // [items]
    X_EACH,      // [a for name in b if c]; c may be NULL
    X_CALL,      // a(args)
    X_INDEX,     // a[indices]
    X_MEMBER,    // a.name
    X_AS,        // a as name, a as name[b]
    X_NOT,       // not a
    X_NEG,       // -a
    X_BINARY,    // a name b: name is one of + - * / % ** @ == != < <= > >= in, not in, and or ??
    X_RANGE,     // a..b; in an index either may be NULL
    X_IF,        // if a then b else c
    X_ALL        // : in an index
} ExprKind;

typedef struct {
    const char *name;        // NULL: positional
    Expr *value;             // `name:` alone is name: name
    Span  at, name_at;
} Arg;
typedef VEC(Arg) Args;

struct Expr {
    ExprKind kind;
    Span  at;
    Span  op_at;             // of the operator, of `.name`, of `as name`
    const char *name;        // interned
    Num   num;
    const char *unit;        // singular: step token sample epoch second minute hour ms KB .. TiB
    Expr *a, *b, *c;
    Exprs items;             // LIST, INDEX
    Args  args;              // CALL
};

// ---- functions ------------------------------------------------------------------------------------------

typedef enum {
    TY_ANY,       // no type was written: what the default is
    TY_TENSOR,    // shape, and element (NULL: float)
    TY_INT, TY_NUM, TY_BOOL, TY_STR, TY_LIST, TY_FN,
    TY_WORDS     // one of words
} TypeKind;

typedef struct {
    TypeKind kind;
    Span  at;
    const char *element;     // TENSOR: "i32", ... or NULL
    Exprs shape;             // TENSOR: expressions and X_REST
    VEC(const char *) words;
} TypeExpr;
typedef VEC(TypeExpr) TypeExprs;

typedef struct {
    const char *name;
    Span  at, name_at;
    TypeExpr type;
    Expr *fallback;          // default, or NULL
} Param;
typedef VEC(Param) Params;

struct Fn {
    const char *name;
    Span   at, name_at;      // at: the head, from `fn` to `)`
    bool   is_model;
    Params params;
    TypeExprs returns;       // n = 0: not written
    bool   has_returns;
    Expr  *value;            // fn f() = value
    Stmts  body;
    Module *module;
};

// ---- statements -----------------------------------------------------------------------------------------

typedef enum {
    S_ASSIGN,    // left = right
    S_UPDATE_BY, // left[0] op= right[0]
    S_EXPR,      // right
    S_PARAM, S_STATE,             // decls = value, options
    S_UPDATE, S_LOSS, S_METRIC, S_EMIT, S_LAYER,      // name = value, options
    S_ASSERT,    // value, text
    S_RETURN,    // right
    S_FOR,       // name in value: body
    S_IF         // value: body, orelse
} StmtKind;

typedef struct {
    const char *name;
    Span  at;
    const char *element;     // NULL: float
    Exprs shape;
} Decl;
typedef VEC(Decl) Decls;

struct Stmt {
    StmtKind kind;
    Span  at;
    const char *name;        // target; S_UPDATE_BY: "+" "-" "*"; S_ASSERT: the text
    Span  name_at;
    Exprs left, right;
    Expr *value;
    Decls decls;
    Args  options;
    Stmts body, orelse;
    bool  for_losses;        // what it assigns is read by losses, metrics and updates only (resolve.c)
};

// ---- blocks ---------------------------------------------------------------------------------------------

typedef enum {
    E_SET,       // left = right, options
    E_SCOPE,     // left = right { body }
    E_REQUIRE,   // right
    E_IGNORE,    // items
    E_EITHER,    // body, orelse
    E_FOR,       // name in right: body
    E_IF         // right: body, orelse
} EntryKind;

struct Entry {
    EntryKind kind;
    Span  at;
    const char *name;
    Expr *left, *right;
    Exprs items;
    Args  options;
    Entries body, orelse;
};

typedef struct {
    const char *name;        // train, config, ...
    Span  at, name_at;
    Exprs words;             // what stands between the name and `{`: X_NAME and X_STR
    Entries entries;
} Block;

// ---- files ----------------------------------------------------------------------------------------------

typedef struct {
    Span  at;
    const char *path;        // "std/norm.moe", or the text of a quoted path
    bool  quoted;
    const char *as;          // NULL: its public functions come into the file's names
    Module *module;          // filled when loaded
} Import;

struct Module {
    const char *path;        // of the file
    const char *name;        // last part without .moe
    uint32_t file;           // number in Diag
    VEC(Import) imports;
    VEC(Fn *)   fns;
    VEC(Block)  blocks;
};

// ---- reading --------------------------------------------------------------------------------------------

// Parses file number `file` of d into m.  false after errors.
bool  ast_parse(Arena *a, Diag *d, uint32_t file, Module *m);
// One entry `left = right` or one expression: for the command line.  NULL after errors.
Entry *ast_parse_entry(Arena *a, Diag *d, uint32_t file);
Expr  *ast_parse_expr(Arena *a, Diag *d, uint32_t file);

const char *ast_text(Arena *a, const Diag *d, Span at); // the source text of a span, blanks made single
const char *ast_doc(Arena *a, const Diag *d, const Fn *f);     // the comment above a function, or NULL
void  ast_print_expr(Str *out, const Expr *e);                 // in a normal form that reads back
void  ast_print(Str *out, const Module *m);

#endif
