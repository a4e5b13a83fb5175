// Symbolic ints: polynomials with rational coefficients over what inputs bind (B, S, past) and opaque atoms
// (ceil(B*S/8)).  Hash-consed, so equal normal forms are one pointer.
#include <math.h>
#include <string.h>

#include "frontend/interp.h"

// A symbol (op NULL) or an opaque function of one or two polynomials.
typedef struct Atom {
    int id;
    const char *op, *name;
    const Poly *a, *b;
} Atom;

enum { MAX_FACTORS = 8 };
typedef struct { const Atom *atom; int power; } Factor;
typedef struct { Num coef; int n; Factor f[MAX_FACTORS]; } Term;     // factors by id; no factor: the constant

struct Poly {
    int n;
    Term term[];             // no two with the same factors; higher degree first
};

typedef struct { const char *name; Dim dim; } Binding;

struct PolyTable {
    Arena *arena;
    VEC(const Atom *) atoms;
    const Poly **slot;       // open addressing
    int n, cap;
    VEC(Binding) bound;      // "S + past" stands for the context
};

struct PolyTable *poly_table_new(Arena *a) {
    struct PolyTable *t = arena_new(a, struct PolyTable);
    t->arena = a;
    return t;
}

static struct PolyTable *table(Lower *lw) { return interp_of(lw)->polys; }

// ---- normal form ----------------------------------------------------------------------------------------

static int degree(const Term *t) {
    int d = 0;
    for (int i = 0; i < t->n; i++) d += t->f[i].power;
    return d;
}

// Higher degree first, then by atoms: the order of printing.
static int order(const Term *x, const Term *y) {
    int dx = degree(x), dy = degree(y);
    if (dx != dy) return dy - dx;
    for (int i = 0; i < x->n && i < y->n; i++) {
        if (x->f[i].atom != y->f[i].atom) return x->f[i].atom->id - y->f[i].atom->id;
        if (x->f[i].power != y->f[i].power) return y->f[i].power - x->f[i].power;
    }
    return x->n - y->n;
}

static uint64_t hash_poly(const Poly *p) {
    uint64_t h = (uint64_t)p->n;
    for (int i = 0; i < p->n; i++) {
        const Term *t = &p->term[i];
        double v = num_value(t->coef);
        h = str_hash(&v, sizeof v, h);
        for (int k = 0; k < t->n; k++) {
            int key[2] = {t->f[k].atom->id, t->f[k].power};
            h = str_hash(key, sizeof key, h);
        }
    }
    return h;
}

static bool same_poly(const Poly *x, const Poly *y) {
    if (x->n != y->n) return false;
    for (int i = 0; i < x->n; i++)
        if (order(&x->term[i], &y->term[i]) != 0 || num_cmp(x->term[i].coef, y->term[i].coef) != 0)
            return false;
    return true;
}

static size_t find_poly(const struct PolyTable *t, const Poly *p) {
    size_t i = hash_poly(p) & (size_t)(t->cap - 1);
    while (t->slot[i] && !same_poly(t->slot[i], p)) i = (i + 1) & (size_t)(t->cap - 1);
    return i;
}

static const Poly *intern_poly(Lower *lw, const Poly *p) {
    struct PolyTable *t = table(lw);
    if (t->n * 2 >= t->cap) {
        int old = t->cap;
        const Poly **slot = t->slot;
        t->cap = old ? old * 2 : 256;
        t->slot = arena_array(t->arena, const Poly *, t->cap);
        for (int i = 0; i < old; i++)
            if (slot[i]) t->slot[find_poly(t, slot[i])] = slot[i];
    }
    size_t i = find_poly(t, p);
    if (!t->slot[i]) {
        t->slot[i] = p;
        t->n++;
    }
    return t->slot[i];
}

// Sorts, merges equal terms and drops zeros; p is fresh memory.
static const Poly *normal(Lower *lw, Poly *p) {
    for (int i = 1; i < p->n; i++)
        for (int k = i; k > 0 && order(&p->term[k - 1], &p->term[k]) > 0; k--) {
            Term swap = p->term[k];
            p->term[k] = p->term[k - 1];
            p->term[k - 1] = swap;
        }
    int n = 0;
    for (int i = 0; i < p->n; i++) {
        if (n && order(&p->term[n - 1], &p->term[i]) == 0)
            p->term[n - 1].coef = num_add(p->term[n - 1].coef, p->term[i].coef);
        else
            p->term[n++] = p->term[i];
    }
    p->n = 0;
    for (int i = 0; i < n; i++)
        if (num_value(p->term[i].coef) != 0) p->term[p->n++] = p->term[i];
    return intern_poly(lw, p);
}

static Poly *poly_alloc(Lower *lw, int n) {
    Poly *p = arena_alloc(table(lw)->arena, sizeof(Poly) + sizeof(Term) * (size_t)n);
    p->n = n;
    return p;
}

static const Poly *poly_atom(Lower *lw, const char *op, const char *name, const Poly *a, const Poly *b) {
    struct PolyTable *t = table(lw);
    const Atom *atom = NULL;
    for (int i = 0; i < t->atoms.n && !atom; i++) {
        const Atom *x = t->atoms.at[i];
        if (x->op == op && x->name == name && x->a == a && x->b == b) atom = x;
    }
    if (!atom) {
        Atom *fresh = arena_new(t->arena, Atom);
        *fresh = (Atom){t->atoms.n, op, name, a, b};
        atom = fresh;
        vec_push(t->arena, &t->atoms, atom);
    }
    Poly *p = poly_alloc(lw, 1);
    p->term[0] = (Term){.coef = num_int(1), .n = 1, .f = {{atom, 1}}};
    return intern_poly(lw, p);
}

// ---- making ---------------------------------------------------------------------------------------------

const Poly *poly_num(Lower *lw, Num n) {
    Poly *p = poly_alloc(lw, 1);
    p->term[0] = (Term){.coef = n};
    return normal(lw, p);
}

const Poly *poly_int(Lower *lw, int64_t n) { return poly_num(lw, num_int(n)); }
const Poly *poly_sym(Lower *lw, const char *name) { return poly_atom(lw, NULL, intern(name), NULL, NULL); }

static const Poly *combine(Lower *lw, const Poly *a, const Poly *b, Num factor) {
    Poly *p = poly_alloc(lw, a->n + b->n);
    memcpy(p->term, a->term, sizeof(Term) * (size_t)a->n);
    for (int i = 0; i < b->n; i++) {
        p->term[a->n + i] = b->term[i];
        p->term[a->n + i].coef = num_mul(b->term[i].coef, factor);
    }
    return normal(lw, p);
}

const Poly *poly_add(Lower *lw, const Poly *a, const Poly *b) { return combine(lw, a, b, num_int(1)); }
const Poly *poly_sub(Lower *lw, const Poly *a, const Poly *b) { return combine(lw, a, b, num_int(-1)); }

// x * y as one term; false if that has more factors than a term holds.
static bool term_mul(const Term *x, const Term *y, Term *out) {
    *out = (Term){.coef = num_mul(x->coef, y->coef)};
    int i = 0, k = 0;
    while (i < x->n || k < y->n) {
        if (out->n == MAX_FACTORS) return false;
        if (k == y->n || (i < x->n && x->f[i].atom->id < y->f[k].atom->id)) {
            out->f[out->n++] = x->f[i++];
        } else if (i == x->n || y->f[k].atom->id < x->f[i].atom->id) {
            out->f[out->n++] = y->f[k++];
        } else {
            out->f[out->n++] = (Factor){x->f[i].atom, x->f[i].power + y->f[k].power};
            i++;
            k++;
        }
    }
    return true;
}

const Poly *poly_mul(Lower *lw, const Poly *a, const Poly *b) {
    Poly *p = poly_alloc(lw, a->n * b->n);
    for (int i = 0; i < a->n; i++)
        for (int k = 0; k < b->n; k++)
            if (!term_mul(&a->term[i], &b->term[k], &p->term[i * b->n + k]))
                return poly_opaque(lw, "*", a, b);
    return normal(lw, p);
}

// x / y as one term, if every factor of y is in x.
static bool term_div(const Term *x, const Term *y, Term *out) {
    *out = (Term){.coef = num_div(x->coef, y->coef)};
    int k = 0;
    for (int i = 0; i < x->n; i++) {
        Factor f = x->f[i];
        if (k < y->n && y->f[k].atom == f.atom) f.power -= y->f[k++].power;
        if (f.power < 0) return false;
        if (f.power) out->f[out->n++] = f;
    }
    return k == y->n;
}

// Long division by the leading term; the order of terms is a monomial order for products.
const Poly *poly_div(Lower *lw, const Poly *a, const Poly *b) {
    Num n;
    if (poly_is_num(b, &n)) {
        if (num_value(n) == 0) return NULL;
        Poly *p = poly_alloc(lw, a->n);
        for (int i = 0; i < a->n; i++) {
            p->term[i] = a->term[i];
            p->term[i].coef = num_div(a->term[i].coef, n);
        }
        return normal(lw, p);
    }
    const Poly *quotient = poly_int(lw, 0), *rest = a;
    for (int round = 0; rest->n > 0; round++) {
        Poly *q = poly_alloc(lw, 1);
        if (round > 16 || !term_div(&rest->term[0], &b->term[0], &q->term[0])) return NULL;
        const Poly *part = normal(lw, q);
        quotient = poly_add(lw, quotient, part);
        rest = poly_sub(lw, rest, poly_mul(lw, part, b));
    }
    return quotient;
}

static Num apply(const char *op, Num a, Num b) {
    switch (op[0]) {
    case '*': return num_mul(a, b);
    case 'c': return num_ceil(a);
    case 'r': return num_round(a);
    case 'm': return (strcmp(op, "max") == 0) == (num_cmp(a, b) >= 0) ? a : b;
    case 'f': return strcmp(op, "floor") == 0 ? num_floor(a) : num_double((double)(float)num_value(a));
    default: return a;
    }
}

const Poly *poly_opaque(Lower *lw, const char *op, const Poly *a, const Poly *b) {
    Num x, y = num_int(0);
    if (poly_is_num(a, &x) && (!b || poly_is_num(b, &y))) return poly_num(lw, apply(op, x, y));
    if (a == b && op[0] == 'm') return a;
    return poly_atom(lw, intern(op), NULL, a, b);
}

// ---- reading --------------------------------------------------------------------------------------------

bool poly_is_num(const Poly *p, Num *out) {
    if (p->n == 0) *out = num_int(0);
    else if (p->n == 1 && p->term[0].n == 0) *out = p->term[0].coef;
    else return false;
    return true;
}

bool poly_is_int(const Poly *p, int64_t *out) {
    Num n;
    return poly_is_num(p, &n) && num_is_int(n, out);
}

static void add_atom(Lower *lw, Str *s, const Atom *a) {
    if (!a->op) {
        str_add(s, a->name);
    } else if (a->op[0] == '*') {
        str_printf(s, "(%s)*(%s)", poly_text(lw, a->a), poly_text(lw, a->b));
    } else {
        str_printf(s, "%s(%s", a->op, poly_text(lw, a->a));
        if (a->b) str_printf(s, ", %s", poly_text(lw, a->b));
        str_add(s, ")");
    }
}

static void add_term(Lower *lw, Str *s, const Term *t, bool first) {
    Num c = t->coef;
    bool negative = num_value(c) < 0;
    if (negative) c = num_mul(c, num_int(-1));
    if (!first) str_add(s, negative ? " - " : " + ");
    else if (negative) str_add(s, "-");
    Num above = c.exact ? num_int(c.num) : c;
    bool one = c.exact && c.num == 1 && t->n > 0;
    if (!one) str_add(s, num_text(lw->arena, above));
    for (int i = 0; i < t->n; i++) {
        if (!one || i) str_add(s, "*");
        add_atom(lw, s, t->f[i].atom);
        if (t->f[i].power > 1) str_printf(s, "**%d", t->f[i].power);
    }
    if (c.exact && c.den > 1) str_printf(s, "/%lld", (long long)c.den);
}

const char *poly_text(Lower *lw, const Poly *p) {
    if (p->n == 0) return "0";
    Str s = {.arena = lw->arena};
    for (int i = 0; i < p->n; i++) add_term(lw, &s, &p->term[i], i == 0);
    return s.text;
}

// ---- what the plan fixes --------------------------------------------------------------------------------

void poly_bind(Lower *lw, const char *sym, Dim value) {
    struct PolyTable *t = table(lw);
    sym = intern(sym);
    for (int i = 0; i < t->bound.n; i++)
        if (t->bound.at[i].name == sym) {
            t->bound.at[i].dim = value;
            return;
        }
    Binding b = {sym, value};
    vec_push(t->arena, &t->bound, b);
}

static const Dim *find_binding(const struct PolyTable *t, const char *name) {
    for (int i = 0; i < t->bound.n; i++)
        if (t->bound.at[i].name == name) return &t->bound.at[i].dim;
    return NULL;
}

static const Poly *substitute(Lower *lw, const Poly *p);

// What stands for an atom once the plan's numbers are put in: numbers, and row symbols as atoms named "$S".
static const Poly *atom_value(Lower *lw, const Atom *a) {
    struct PolyTable *t = table(lw);
    if (a->op) {
        const Poly *x = substitute(lw, a->a), *y = a->b ? substitute(lw, a->b) : NULL;
        return a->op[0] == '*' ? poly_mul(lw, x, y) : poly_opaque(lw, a->op, x, y);
    }
    const Dim *d = find_binding(t, a->name);
    if (d && !d->sym) return poly_int(lw, d->n);
    if (d)
        return poly_mul(lw, poly_int(lw, d->n), poly_sym(lw, arena_printf(lw->arena, "$%s", d->sym->name)));
    if (strcmp(a->name, "past") == 0 && lw->sequence) {           // the context is S + past
        const Dim *context = find_binding(t, intern("S + past"));
        if (context && context->sym)
            return poly_sub(lw, poly_sym(lw, arena_printf(lw->arena, "$%s", context->sym->name)),
                            substitute(lw, lw->sequence));
    }
    return poly_atom(lw, a->op, a->name, a->a, a->b);
}

static const Poly *substitute(Lower *lw, const Poly *p) {
    const Poly *sum = poly_int(lw, 0);
    for (int i = 0; i < p->n; i++) {
        const Poly *product = poly_num(lw, p->term[i].coef);
        for (int k = 0; k < p->term[i].n; k++)
            for (int power = p->term[i].f[k].power; power; power--)
                product = poly_mul(lw, product, atom_value(lw, p->term[i].f[k].atom));
        sum = poly_add(lw, sum, product);
    }
    return sum;
}

bool poly_dim(Lower *lw, const Poly *p, Dim *out) {
    const Poly *q = substitute(lw, p);
    int64_t n;
    if (poly_is_int(q, &n)) {
        *out = dim_n(n);
        return true;
    }
    if (q->n != 1 || q->term[0].n != 1 || q->term[0].f[0].power != 1 || !num_is_int(q->term[0].coef, &n))
        return false;
    const Atom *a = q->term[0].f[0].atom;
    if (a->op || a->name[0] != '$') return false;
    struct PolyTable *t = table(lw);
    for (int i = 0; i < t->bound.n; i++) {
        Sym *sym = t->bound.at[i].dim.sym;
        if (sym && strcmp(sym->name, a->name + 1) == 0) {
            *out = (Dim){n, sym};
            return true;
        }
    }
    return false;
}

bool poly_value(Lower *lw, const Poly *p, Num *out) { return poly_is_num(substitute(lw, p), out); }

// ---- comparisons that hold for every value --------------------------------------------------------------

// A number p is never below, taking every symbol as at least 1 (past: 0).  false if none is known.
static bool poly_least(const Poly *p, Num *out);

static bool atom_least(const Atom *a, Num *out) {
    if (!a->op) {
        *out = num_int(strcmp(a->name, "past") != 0);
        return true;
    }
    Num x, y;
    if (strcmp(a->op, "max") == 0) {
        bool hx = poly_least(a->a, &x), hy = poly_least(a->b, &y);
        if (!hx && !hy) return false;
        *out = !hy || (hx && num_cmp(x, y) > 0) ? x : y;
        return true;
    }
    if (!poly_least(a->a, &x)) return false;
    if (a->b) {
        if (!poly_least(a->b, &y)) return false;
        *out = apply(a->op, x, y);
        return a->op[0] != '*' || (num_value(x) >= 0 && num_value(y) >= 0);
    }
    *out = apply(a->op, x, x);
    return true;
}

static bool poly_least(const Poly *p, Num *out) {
    Num sum = num_int(0);
    for (int i = 0; i < p->n; i++) {
        Num product = p->term[i].coef;
        if (p->term[i].n && num_value(product) < 0) return false;
        for (int k = 0; k < p->term[i].n; k++) {
            Num least;
            if (!atom_least(p->term[i].f[k].atom, &least) || num_value(least) < 0) return false;
            for (int power = p->term[i].f[k].power; power; power--) product = num_mul(product, least);
        }
        sum = num_add(sum, product);
    }
    *out = sum;
    return true;
}

// 1: true for all values, 0: false for all, -1: it depends.
int poly_compare(Lower *lw, const char *op, const Poly *a, const Poly *b) {
    const Poly *ab = poly_sub(lw, a, b), *ba = poly_sub(lw, b, a);
    Num d;
    if (poly_is_num(ab, &d)) {
        int c = num_cmp(d, num_int(0));
        if (op[0] == '=') return c == 0;
        if (op[0] == '!') return c != 0;
        bool equal_too = op[1] == '=';
        return (op[0] == '<' ? c < 0 : c > 0) || (equal_too && c == 0);
    }
    Num least;
    bool above = poly_least(ab, &least) && num_value(least) > 0,
         below = poly_least(ba, &least) && num_value(least) > 0;
    bool not_below = poly_least(ab, &least) && num_value(least) >= 0;
    bool not_above = poly_least(ba, &least) && num_value(least) >= 0;
    if (op[0] == '=') return above || below ? 0 : -1;
    if (op[0] == '!') return above || below ? 1 : -1;
    if (op[0] == '<') {
        if (op[1] == '=') return not_above ? 1 : above ? 0 : -1;
        return below ? 1 : not_below ? 0 : -1;
    }
    if (op[1] == '=') return not_below ? 1 : below ? 0 : -1;
    return above ? 1 : not_above ? 0 : -1;
}
