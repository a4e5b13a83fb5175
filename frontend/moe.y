// The grammar: builds the tree of ast.h.  No conflicts, no precedence declarations: the layers of `expr` are the
// precedences.  Line ends and unclosed brackets are moe.l's business.
%code requires {
#include "frontend/ast.h"

typedef enum { SCAN_FILE, SCAN_ENTRY, SCAN_EXPR } ScanStart;
enum { SCAN_BRACKETS = 100 };

typedef struct Scan Scan;
}

%code provides {
// One reading of one text: the lexer's state and the parser's result.
struct Scan {
    Arena *arena;
    Diag  *diag;
    uint32_t file, offset;
    ScanStart start;
    void  *flex;
    Span   at;                       // of the raw lexeme
    bool   started;
    struct { Span at; char closer; } bracket[SCAN_BRACKETS];     // open ones
    int    n_brackets;
    int    last;                     // the lexeme given before
    bool   first_on_line;            // the lexeme given last is the first of its line
    bool   quiet;                    // inside brackets after a message: close them without another one
    bool   closing, line_after_closers;
    bool   has_held, held_first;     // a lexeme that waits behind supplied closers
    int    held;
    MOE_STYPE held_value;
    Span   held_at;
    Module *module;                  // results
    Entry  *entry;
    Expr   *expr;
};

int  moe_lex(MOE_STYPE *value, Span *at, Scan *s);
bool moe_read(Scan *s);              // false after errors
}

%code {
#define YYLLOC_DEFAULT(Current, Rhs, N)                                                        \
    do {                                                                                       \
        if (N) {                                                                               \
            (Current) = (Span){YYRHSLOC(Rhs, 1).file, YYRHSLOC(Rhs, 1).begin, YYRHSLOC(Rhs, N).end}; \
        } else {                                                                               \
            uint32_t end_ = YYRHSLOC(Rhs, 0).end;                                              \
            (Current) = (Span){YYRHSLOC(Rhs, 0).file, end_, end_};                             \
        }                                                                                      \
    } while (0)

static void moe_error(const Span *at, Scan *s, const char *text);

static Expr *expr(Scan *s, ExprKind kind, Span at) {
    Expr *e = arena_new(s->arena, Expr);
    e->kind = kind;
    e->at = e->op_at = at;
    return e;
}

static Expr *named(Scan *s, ExprKind kind, Span at, const char *name) {
    Expr *e = expr(s, kind, at);
    e->name = name;
    return e;
}

static Expr *binary(Scan *s, Span at, Span op_at, const char *op, Expr *a, Expr *b) {
    Expr *e = named(s, X_BINARY, at, intern(op));
    e->op_at = op_at;
    e->a = a;
    e->b = b;
    return e;
}

static Expr *unary(Scan *s, ExprKind kind, Span at, Expr *a) {
    Expr *e = expr(s, kind, at);
    e->a = a;
    return e;
}

static Stmt *stmt(Scan *s, StmtKind kind, Span at) {
    Stmt *t = arena_new(s->arena, Stmt);
    t->kind = kind;
    t->at = at;
    return t;
}

static Stmt *named_stmt(Scan *s, StmtKind kind, Span at, const char *name, Span name_at, Expr *value, Args options) {
    Stmt *t = stmt(s, kind, at);
    t->name = name;
    t->name_at = name_at;
    t->value = value;
    t->options = options;
    return t;
}

static Stmt *declaration(Scan *s, StmtKind kind, Span at, Decls decls, Expr *init, Args options) {
    Stmt *t = stmt(s, kind, at);
    t->decls = decls;
    t->value = init;
    t->options = options;
    return t;
}

static Stmt *assign_by(Scan *s, Span at, const char *op, Exprs left, Expr *right) {
    Stmt *t = stmt(s, S_UPDATE_BY, at);
    t->name = intern(op);
    t->left = left;
    vec_push(s->arena, &t->right, right);
    return t;
}

static Entry *entry(Scan *s, EntryKind kind, Span at) {
    Entry *e = arena_new(s->arena, Entry);
    e->kind = kind;
    e->at = at;
    return e;
}

static Decl make_decl(const char *name, Span at, const char *element, Exprs shape) {
    return (Decl){name, at, element, shape};
}

static bool is_element_type(const char *word) {
    static const char *const types[] = {"f32", "bf16", "f16", "i32", "i8", "u8", "bool"};
    for (size_t i = 0; i < sizeof types / sizeof *types; i++)
        if (strcmp(types[i], word) == 0) return true;
    return false;
}

static void check_element(Scan *s, Span at, const char *word) {
    static const char *const types[] = {"f32", "bf16", "f16", "i32", "i8", "u8", "bool"};
    if (is_element_type(word)) return;
    const char *near = did_you_mean(word, types, 7);
    if (near) diag_error(s->diag, at, "there is no element type '%s'; did you mean '%s'?", word, near);
    else diag_error(s->diag, at, "there is no element type '%s'; there are f32 bf16 f16 i32 i8 u8 bool", word);
}

static TypeExpr tensor_type(Scan *s, Span at, const char *element, Exprs shape) {
    if (element) check_element(s, (Span){at.file, at.begin, at.begin + (uint32_t)strlen(element)}, element);
    return (TypeExpr){.kind = TY_TENSOR, .at = at, .element = element, .shape = shape};
}

static TypeExpr word_type(Scan *s, Span at, const char *word) {
    static const char *const names[] = {"int", "num", "bool", "str", "list", "fn"};
    static const TypeKind kinds[] = {TY_INT, TY_NUM, TY_BOOL, TY_STR, TY_LIST, TY_FN};
    TypeExpr t = {.kind = TY_ANY, .at = at};
    for (int i = 0; i < 6; i++)
        if (strcmp(names[i], word) == 0) {
            t.kind = kinds[i];
            return t;
        }
    if (is_element_type(word)) {
        diag_error(s->diag, at, "a tensor's type has a shape: %s[...]", word);
        return t;
    }
    const char *near = did_you_mean(word, names, 6);
    if (near) diag_error(s->diag, at, "there is no type '%s'; did you mean '%s'?", word, near);
    else diag_error(s->diag, at, "there is no type '%s'; there are int num bool str list fn, words and tensors", word);
    return t;
}

static void check_param(Scan *s, const Param *p) {
    for (int i = 0; i < p->type.shape.n; i++)
        if (p->type.shape.at[i]->kind == X_REST)
            for (int k = 0; k < i; k++)
                if (p->type.shape.at[k]->kind == X_REST)
                    diag_error(s->diag, p->type.shape.at[i]->at, "a shape has one '...' at most");
}

static const char *joined(Scan *s, const char *a, const char *separator, const char *b) {
    return arena_printf(s->arena, "%s%s%s", a, separator, b);
}
}

%define api.pure full
%define api.prefix {moe_}
%define api.token.prefix {T_}
%define api.location.type {Span}
%define parse.error detailed
%locations
%expect 0
%param {Scan *s}

%union {
    const char *name;
    Num number;
    struct { Num num; const char *unit; } quantity;
    Expr *expr;
    Exprs exprs;
    Arg arg;
    Args args;
    Stmt *stmt;
    Stmts stmts;
    Entry *entry;
    Entries entries;
    Param param;
    Params params;
    TypeExpr type;
    TypeExprs types;
    Decl decl;
    Decls decls;
    Fn *fn;
}

%token START_FILE START_ENTRY START_EXPR
%token END 0 "end of file"
%token NL "end of line"
%token <name> ID "name"
%token <name> STRING "string"
%token <number> NUMBER "number"
%token <quantity> QUANTITY "quantity"
%token <name> IMPORT "'import'" FN "'fn'" MODEL "'model'" PARAM "'param'" STATE "'state'" UPDATE "'update'" LOSS "'loss'"
       METRIC "'metric'" EMIT "'emit'" LAYER "'layer'" ASSERT "'assert'" RETURN "'return'" FOR "'for'" IN "'in'" IF "'if'"
       THEN "'then'" ELSE "'else'" AND "'and'" OR "'or'" NOT "'not'" AS "'as'" TRUE "'true'" FALSE "'false'"
       NONE "'none'" INF "'inf'" REQUIRE "'require'" IGNORE "'ignore'" EITHER "'either'"
%token REST "'...'" DOTS "'..'" ARROW "'->'" POWER "'**'" EQ "'=='" NE "'!='" LE "'<='" GE "'>='" ELVIS "'?\?'"
       ADD_BY "'+='" SUB_BY "'-='" MUL_BY "'*='"

%type <name> path compare_op keyword
%type <expr> expr default or and not compare range sum term unary power named postfix primary element index fallback conditional value
%type <exprs> elements element_list shape exprs indices words
%type <arg> arg option
%type <args> args arg_list options
%type <stmt> statement if
%type <stmts> body lines
%type <entry> entry entry_if
%type <entries> entries entry_lines
%type <param> param
%type <params> params param_list
%type <type> type type_words result
%type <types> results
%type <decl> decl
%type <decls> decls
%type <fn> head

%%

start:
    START_FILE file
  | START_ENTRY expr '=' value NL { s->entry = entry(s, E_SET, @$); s->entry->left = $2; s->entry->right = $4; }
  | START_EXPR expr NL            { s->expr = $expr; }
  ;

file:
    %empty
  | file NL
  | file item NL
  | file error NL                 { yyerrok; }
  ;

item: import | function | block ;

import:
    IMPORT import_list
  | IMPORT path AS ID             { Import i = {.at = @path, .path = joined(s, $path, ".moe", ""), .as = $ID};
                                    vec_push(s->arena, &s->module->imports, i); }
  | IMPORT STRING                 { Import i = {.at = @STRING, .path = $STRING, .quoted = true};
                                    vec_push(s->arena, &s->module->imports, i); }
  | IMPORT STRING AS ID           { Import i = {.at = @STRING, .path = $STRING, .quoted = true, .as = $ID};
                                    vec_push(s->arena, &s->module->imports, i); }
  ;

import_list:
    path                          { Import i = {.at = @path, .path = joined(s, $path, ".moe", "")};
                                    vec_push(s->arena, &s->module->imports, i); }
  | import_list ',' path          { Import i = {.at = @path, .path = joined(s, $path, ".moe", "")};
                                    vec_push(s->arena, &s->module->imports, i); }
  ;

path:
    ID
  | path '.' ID                   { $$ = joined(s, $1, "/", $ID); }
  ;

// ---- functions ----

function:
    FN head body                  { $head->body = $body; }
  | FN head ARROW results body    { $head->body = $body; $head->returns = $results; $head->has_returns = true; }
  | FN head '=' expr              { $head->value = $expr; }
  | MODEL head body               { $head->body = $body; $head->is_model = true; }
  | MODEL head ARROW results body { $head->body = $body; $head->returns = $results; $head->has_returns = true;
                                    $head->is_model = true; }
  ;

head:
    ID '(' params ')'             { $$ = arena_new(s->arena, Fn);
                                    $$->name = $ID;
                                    $$->at = @$;
                                    $$->name_at = @ID;
                                    $$->params = $params;
                                    $$->module = s->module;
                                    vec_push(s->arena, &s->module->fns, $$); }
  ;

params:
    %empty                        { $$ = (Params){0}; }
  | param_list
  | param_list ','
  ;

param_list:
    param                         { $$ = (Params){0}; check_param(s, &$param); vec_push(s->arena, &$$, $param); }
  | param_list ',' param          { $$ = $1; check_param(s, &$param); vec_push(s->arena, &$$, $param); }
  ;

param:
    ID                            { diag_error(s->diag, @ID, "parameter '%s' needs a type or a default", $ID);
                                    diag_help(s->diag, "%s: int", $ID);
                                    $$ = (Param){.name = $ID, .at = @$, .name_at = @ID}; }
  | ID '=' expr                   { $$ = (Param){.name = $ID, .at = @$, .name_at = @ID, .fallback = $expr}; }
  | ID shape fallback             { $$ = (Param){.name = $ID, .at = @$, .name_at = @ID, .fallback = $fallback,
                                                 .type = tensor_type(s, @shape, NULL, $shape)}; }
  | ID ':' type fallback          { $$ = (Param){.name = $ID, .at = @$, .name_at = @ID, .fallback = $fallback,
                                                 .type = $type}; }
  ;

fallback:
    %empty                        { $$ = NULL; }
  | '=' expr                      { $$ = $expr; }
  ;

type:
    FN                            { $$ = (TypeExpr){.kind = TY_FN, .at = @$}; }
  | ID                            { $$ = word_type(s, @ID, $ID); }
  | ID shape                      { $$ = tensor_type(s, @$, $ID, $shape); }
  | type_words
  ;

type_words:
    STRING                        { $$ = (TypeExpr){.kind = TY_WORDS, .at = @$}; vec_push(s->arena, &$$.words, $STRING); }
  | type_words '|' STRING         { $$ = $1; $$.at = @$; vec_push(s->arena, &$$.words, $STRING); }
  ;

results:
    result                        { $$ = (TypeExprs){0}; vec_push(s->arena, &$$, $result); }
  | results ',' result            { $$ = $1; vec_push(s->arena, &$$, $result); }
  ;

result:
    type
  | shape                         { $$ = tensor_type(s, @shape, NULL, $shape); }
  ;

shape: '[' elements ']'           { $$ = $elements; } ;

elements:
    %empty                        { $$ = (Exprs){0}; }
  | element_list
  | element_list ','
  ;

element_list:
    element                       { $$ = (Exprs){0}; vec_push(s->arena, &$$, $element); }
  | element_list ',' element      { $$ = $1; vec_push(s->arena, &$$, $element); }
  ;

element:
    expr
  | REST                          { $$ = expr(s, X_REST, @$); }
  ;

// ---- statements ----

body:
    '{' lines '}'                 { $$ = $lines; }
  | '{' lines statement '}'       { $$ = $lines; if ($statement) vec_push(s->arena, &$$, $statement); }
  | '{' lines error '}'           { $$ = $lines; yyerrok; }
  ;

lines:
    %empty                        { $$ = (Stmts){0}; }
  | lines NL
  | lines statement NL            { $$ = $1; if ($statement) vec_push(s->arena, &$$, $statement); }
  | lines error NL                { $$ = $1; yyerrok; }
  ;

statement:
    exprs                         { $$ = stmt(s, S_EXPR, @$); $$->right = $exprs; }
  | exprs '=' exprs               { $$ = stmt(s, S_ASSIGN, @$); $$->left = $1; $$->right = $3; }
  | exprs ADD_BY expr             { $$ = assign_by(s, @$, "+", $exprs, $expr); }
  | exprs SUB_BY expr             { $$ = assign_by(s, @$, "-", $exprs, $expr); }
  | exprs MUL_BY expr             { $$ = assign_by(s, @$, "*", $exprs, $expr); }
  | PARAM decls '=' expr options  { $$ = declaration(s, S_PARAM, @$, $decls, $expr, $options); }
  | STATE decls '=' expr options  { $$ = declaration(s, S_STATE, @$, $decls, $expr, $options); }
  | UPDATE ID '=' expr options    { $$ = named_stmt(s, S_UPDATE, @$, $ID, @ID, $expr, $options); }
  | LOSS ID '=' expr options      { $$ = named_stmt(s, S_LOSS, @$, $ID, @ID, $expr, $options); }
  | METRIC ID '=' expr options    { $$ = named_stmt(s, S_METRIC, @$, $ID, @ID, $expr, $options); }
  | EMIT ID '=' expr options      { $$ = named_stmt(s, S_EMIT, @$, $ID, @ID, $expr, $options); }
  | LAYER ID '=' expr options     { $$ = named_stmt(s, S_LAYER, @$, $ID, @ID, $expr, $options); }
  | ASSERT expr ',' STRING        { $$ = stmt(s, S_ASSERT, @$); $$->value = $expr; $$->name = $STRING; }
  | RETURN exprs                  { $$ = stmt(s, S_RETURN, @$); $$->right = $exprs; }
  | FOR ID IN expr body           { Span at = {@$.file, @1.begin, @expr.end};
                                    $$ = named_stmt(s, S_FOR, at, $ID, @ID, $expr, (Args){0});
                                    $$->body = $body; }
  | if
  ;

if:
    IF expr body                  { $$ = stmt(s, S_IF, @expr); $$->value = $expr; $$->body = $body; }
  | IF expr body ELSE body        { $$ = stmt(s, S_IF, @expr); $$->value = $expr; $$->body = $3;
                                    $$->orelse = $5; }
  | IF expr body ELSE if          { $$ = stmt(s, S_IF, @expr); $$->value = $expr; $$->body = $body;
                                    vec_push(s->arena, &$$->orelse, $5); }
  ;

decls:
    decl                          { $$ = (Decls){0}; vec_push(s->arena, &$$, $decl); }
  | decls ',' decl                { $$ = $1; vec_push(s->arena, &$$, $decl); }
  ;

decl:
    ID shape                      { $$ = make_decl($ID, @$, NULL, $shape); }
  | ID ':' ID shape               { check_element(s, @3, $3); $$ = make_decl($1, @$, $3, $shape); }
  ;

options:
    %empty                        { $$ = (Args){0}; }
  | options ',' option            { $$ = $1; vec_push(s->arena, &$$, $option); }
  ;

option: ID ':' expr               { $$ = (Arg){$ID, $expr, @$, @ID}; } ;

exprs:
    expr                          { $$ = (Exprs){0}; vec_push(s->arena, &$$, $expr); }
  | exprs ',' expr                { $$ = $1; vec_push(s->arena, &$$, $expr); }
  ;

// ---- expressions ----

expr: conditional | default ;

conditional:
    IF expr THEN expr ELSE expr   { $$ = expr(s, X_IF, @$); $$->a = $2; $$->b = $4; $$->c = $6; }
  ;

default:
    or
  | or ELVIS default              { $$ = binary(s, @$, @2, "??", $1, $3); }
  | or ELVIS conditional          { $$ = binary(s, @$, @2, "??", $1, $3); }
  ;

or:
    and
  | or OR and                     { $$ = binary(s, @$, @2, "or", $1, $3); }
  ;

and:
    not
  | and AND not                   { $$ = binary(s, @$, @2, "and", $1, $3); }
  ;

not:
    NOT not                       { $$ = unary(s, X_NOT, @$, $2); }
  | compare
  ;

compare:
    range
  | range compare_op range        { $$ = binary(s, @$, @2, $2, $1, $3); }
  ;

compare_op:
    EQ                            { $$ = "=="; }
  | NE                            { $$ = "!="; }
  | '<'                           { $$ = "<"; }
  | LE                            { $$ = "<="; }
  | '>'                           { $$ = ">"; }
  | GE                            { $$ = ">="; }
  | IN                            { $$ = "in"; }
  | NOT IN                        { $$ = "not in"; }
  ;

range:
    sum
  | sum DOTS sum                  { $$ = expr(s, X_RANGE, @$); $$->a = $1; $$->b = $3; }
  ;

sum:
    term
  | sum '+' term                  { $$ = binary(s, @$, @2, "+", $1, $3); }
  | sum '-' term                  { $$ = binary(s, @$, @2, "-", $1, $3); }
  ;

term:
    unary
  | term '*' unary                { $$ = binary(s, @$, @2, "*", $1, $3); }
  | term '/' unary                { $$ = binary(s, @$, @2, "/", $1, $3); }
  | term '%' unary                { $$ = binary(s, @$, @2, "%", $1, $3); }
  | term '@' unary                { $$ = binary(s, @$, @2, "@", $1, $3); }
  ;

unary:
    '-' unary                     { $$ = unary(s, X_NEG, @$, $2); }
  | power
  ;

power:
    named
  | named POWER unary             { $$ = binary(s, @$, @2, "**", $1, $3); }
  ;

// Takes no further postfix: `x as layers[i]` is a name with an index.
named:
    postfix
  | postfix AS ID                 { $$ = named(s, X_AS, @$, $ID); $$->a = $1; $$->op_at = @ID; }
  | postfix AS ID '[' expr ']'    { $$ = named(s, X_AS, @$, $ID); $$->a = $1; $$->b = $5;
                                    $$->op_at = (Span){@$.file, @3.begin, @6.end}; }
  ;

postfix:
    primary
  | postfix '(' args ')'          { $$ = expr(s, X_CALL, @$); $$->a = $1; $$->args = $args; $$->op_at = @1; }
  | postfix '[' indices ']'       { $$ = expr(s, X_INDEX, @$); $$->a = $1; $$->items = $indices; }
  | postfix '.' ID                { $$ = named(s, X_MEMBER, @$, $ID); $$->a = $1; $$->op_at = @ID; }
  ;

args:
    %empty                        { $$ = (Args){0}; }
  | arg_list
  | arg_list ','
  ;

arg_list:
    arg                           { $$ = (Args){0}; vec_push(s->arena, &$$, $arg); }
  | arg_list ',' arg              { $$ = $1; vec_push(s->arena, &$$, $arg); }
  ;

arg:
    expr                          { $$ = (Arg){NULL, $expr, @$, @$}; }
  | ID ':'                        { $$ = (Arg){$ID, named(s, X_NAME, @ID, $ID), @$, @ID}; }
  | ID ':' expr                   { $$ = (Arg){$ID, $expr, @$, @ID}; }
  ;

indices:
    index                         { $$ = (Exprs){0}; vec_push(s->arena, &$$, $index); }
  | indices ',' index             { $$ = $1; vec_push(s->arena, &$$, $index); }
  ;

index:
    expr
  | sum DOTS                      { $$ = expr(s, X_RANGE, @$); $$->a = $sum; }
  | DOTS sum                      { $$ = expr(s, X_RANGE, @$); $$->b = $sum; }
  | ':'                           { $$ = expr(s, X_ALL, @$); }
  | REST                          { $$ = expr(s, X_REST, @$); }
  ;

primary:
    ID                            { $$ = named(s, X_NAME, @$, $ID); }
  | MODEL                         { $$ = expr(s, X_MODEL, @$); }
  | NUMBER                        { $$ = expr(s, X_NUM, @$); $$->num = $NUMBER; }
  | QUANTITY                      { $$ = expr(s, X_QUANTITY, @$); $$->num = $QUANTITY.num; $$->unit = $QUANTITY.unit; }
  | STRING                        { $$ = named(s, X_STR, @$, $STRING); }
  | TRUE                          { $$ = expr(s, X_BOOL, @$); $$->num = num_int(1); }
  | FALSE                         { $$ = expr(s, X_BOOL, @$); $$->num = num_int(0); }
  | NONE                          { $$ = expr(s, X_NONE, @$); }
  | INF                           { $$ = expr(s, X_INF, @$); }
  | '.' ID                        { $$ = named(s, X_DOT, @$, $ID); }
  | '(' expr ')'                  { $$ = $expr; }
  | '[' elements ']'              { $$ = expr(s, X_LIST, @$); $$->items = $elements; }
  | '[' expr FOR ID IN expr ']'   { $$ = named(s, X_EACH, @$, $ID); $$->op_at = @ID; $$->a = $2; $$->b = $6; }
  | '[' expr FOR ID IN expr IF expr ']'
                                  { $$ = named(s, X_EACH, @$, $ID); $$->op_at = @ID; $$->a = $2; $$->b = $6;
                                    $$->c = $8; }
  ;

// ---- blocks ----

block:
    ID words entries              { Span at = {@$.file, @1.begin, @words.end};
                                    Block b = {.name = $ID, .at = at, .name_at = @ID, .words = $words,
                                               .entries = $entries};
                                    vec_push(s->arena, &s->module->blocks, b); }
  ;

words:
    %empty                        { $$ = (Exprs){0}; }
  | words ID                      { $$ = $1; vec_push(s->arena, &$$, named(s, X_NAME, @ID, $ID)); }
  | words STRING                  { $$ = $1; vec_push(s->arena, &$$, named(s, X_STR, @STRING, $STRING)); }
  ;

entries:
    '{' entry_lines '}'           { $$ = $entry_lines; }
  | '{' entry_lines entry '}'     { $$ = $entry_lines; vec_push(s->arena, &$$, $entry); }
  | '{' entry_lines error '}'     { $$ = $entry_lines; yyerrok; }
  ;

entry_lines:
    %empty                        { $$ = (Entries){0}; }
  | entry_lines NL
  | entry_lines entry NL          { $$ = $1; vec_push(s->arena, &$$, $entry); }
  | entry_lines error NL          { $$ = $1; yyerrok; }
  ;

entry:
    expr '=' value options        { $$ = entry(s, E_SET, @$); $$->left = $1; $$->right = $3; $$->options = $options; }
  | expr '=' expr entries         { $$ = entry(s, E_SCOPE, (Span){@$.file, @1.begin, @3.end});
                                    $$->left = $1; $$->right = $3; $$->body = $entries; }
  | REQUIRE expr                  { $$ = entry(s, E_REQUIRE, @$); $$->right = $expr; }
  | IGNORE exprs                  { $$ = entry(s, E_IGNORE, @$); $$->items = $exprs; }
  | EITHER entries OR entries     { $$ = entry(s, E_EITHER, @1); $$->body = $2; $$->orelse = $4; }
  | FOR ID IN expr entries        { $$ = entry(s, E_FOR, (Span){@$.file, @1.begin, @expr.end}); $$->name = $ID;
                                    $$->right = $expr; $$->body = $entries; }
  | entry_if
  ;

value:                              // recompute = layer: a key's word may be a keyword
    expr
  | keyword                       { $$ = named(s, X_NAME, @$, $keyword); }
  ;

keyword: IMPORT | FN | PARAM | STATE | UPDATE | LOSS | METRIC | EMIT | LAYER | ASSERT | RETURN | FOR | AS | REQUIRE
  | IGNORE | EITHER ;

entry_if:
    IF expr entries               { $$ = entry(s, E_IF, @expr); $$->right = $expr; $$->body = $entries; }
  | IF expr entries ELSE entries  { $$ = entry(s, E_IF, @expr); $$->right = $expr; $$->body = $3;
                                    $$->orelse = $5; }
  | IF expr entries ELSE entry_if { $$ = entry(s, E_IF, @expr); $$->right = $expr; $$->body = $entries;
                                    vec_push(s->arena, &$$->orelse, $5); }
  ;

%%

static void moe_error(const Span *at, Scan *s, const char *text) {
    static const char intro[] = "syntax error, ";
    if (strncmp(text, intro, strlen(intro)) == 0) text += strlen(intro);
    if (s->quiet) return;
    diag_error(s->diag, *at, "%s", text);
    if (s->n_brackets > 0) {
        diag_note(s->diag, s->bracket[s->n_brackets - 1].at, "inside this bracket");
        s->quiet = true;
    }
}
