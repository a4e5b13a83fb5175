// Exact rational arithmetic with a way out to double.  64 bits for numerator and denominator, 128 in between.
#include "frontend/num.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef __int128 Wide;

static Wide gcd(Wide a, Wide b) {
    if (a < 0) a = -a;
    while (b) {
        Wide t = a % b;
        a = b;
        b = t < 0 ? -t : t;
    }
    return a;
}

Num num_double(double f) { return (Num){.exact = false, .den = 1, .f = f}; }

// num/den in lowest terms, or a double where 64 bits don't hold it.
static Num make_num(Wide num, Wide den) {
    if (den < 0) {
        num = -num;
        den = -den;
    }
    Wide g = gcd(num, den);
    if (g > 1) {
        num /= g;
        den /= g;
    }
    if (num > INT64_MAX || num < -INT64_MAX || den > INT64_MAX) return num_double((double)num / (double)den);
    return (Num){.exact = true, .num = (int64_t)num, .den = (int64_t)den};
}

Num num_int(int64_t n) { return (Num){.exact = true, .num = n, .den = 1}; }

double num_value(Num a) { return a.exact ? (double)a.num / (double)a.den : a.f; }

bool num_is_int(Num a, int64_t *out) {
    int64_t n;
    if (a.exact) {
        if (a.den != 1) return false;
        n = a.num;
    } else {
        if (!(fabs(a.f) < 9e15) || a.f != floor(a.f)) return false;
        n = (int64_t)a.f;
    }
    if (out) *out = n;
    return true;
}

Num num_add(Num a, Num b) {
    if (!a.exact || !b.exact) return num_double(num_value(a) + num_value(b));
    return make_num((Wide)a.num * b.den + (Wide)b.num * a.den, (Wide)a.den * b.den);
}

Num num_sub(Num a, Num b) {
    if (!a.exact || !b.exact) return num_double(num_value(a) - num_value(b));
    return make_num((Wide)a.num * b.den - (Wide)b.num * a.den, (Wide)a.den * b.den);
}

Num num_mul(Num a, Num b) {
    if (!a.exact || !b.exact) return num_double(num_value(a) * num_value(b));
    return make_num((Wide)a.num * b.num, (Wide)a.den * b.den);
}

Num num_div(Num a, Num b) {
    if (!a.exact || !b.exact || b.num == 0) return num_double(num_value(a) / num_value(b));
    return make_num((Wide)a.num * b.den, (Wide)a.den * b.num);
}

Num num_floor(Num a) {
    if (!a.exact) return num_double(floor(a.f));
    int64_t q = a.num / a.den;
    if (a.num % a.den < 0) q--;
    return num_int(q);
}

Num num_ceil(Num a) {
    if (!a.exact) return num_double(ceil(a.f));
    int64_t q = a.num / a.den;
    if (a.num % a.den > 0) q++;
    return num_int(q);
}

Num num_round(Num a) {
    if (!a.exact) return num_double(rint(a.f));
    Num low = num_floor(a), rest = num_sub(a, low);
    int side = num_cmp(rest, make_num(1, 2));
    bool up = side > 0 || (side == 0 && low.num % 2 != 0);
    return up ? num_add(low, num_int(1)) : low;
}

Num num_mod(Num a, Num b) {
    if (num_value(b) == 0) return num_double(NAN);
    return num_sub(a, num_mul(b, num_floor(num_div(a, b))));
}

Num num_pow(Num a, Num b) {
    int64_t n;
    if (a.exact && b.exact && num_is_int(b, &n) && n >= -1024 && n <= 1024) {
        Num base = n < 0 ? num_div(num_int(1), a) : a, result = num_int(1);
        for (int64_t e = n < 0 ? -n : n; e; e >>= 1) {
            if (e & 1) result = num_mul(result, base);
            if (e > 1) base = num_mul(base, base);
        }
        if (result.exact) return result;
    }
    return num_double(pow(num_value(a), num_value(b)));
}

int num_cmp(Num a, Num b) {
    if (a.exact && b.exact) {
        Wide x = (Wide)a.num * b.den, y = (Wide)b.num * a.den;
        return (x > y) - (x < y);
    }
    double x = num_value(a), y = num_value(b);
    if (isnan(x) || isnan(y)) return 2;
    return (x > y) - (x < y);
}

const char *num_text(Arena *a, Num n) {
    int64_t i;
    if (num_is_int(n, &i)) return arena_printf(a, "%lld", (long long)i);
    if (n.exact) {                                  // 0.02 rather than 1/50, 1/3 rather than 0.333333
        int64_t d = n.den;
        while (d % 2 == 0) d /= 2;
        while (d % 5 == 0) d /= 5;
        if (d != 1) return arena_printf(a, "%lld/%lld", (long long)n.num, (long long)n.den);
    }
    return arena_printf(a, "%.9g", num_value(n));
}

static Num suffix_factor(const char *s, size_t n) {
    static const char letters[] = "kMBT";
    if (n == 2) {
        const char *binary = "KMGT", *p = strchr(binary, s[0]);
        return num_int((int64_t)1 << (10 * (p - binary + 1)));
    }
    int power = s[0] == 'G' ? 3 : (int)(strchr(letters, s[0]) - letters) + 1;
    return num_pow(num_int(1000), num_int(power));
}

Num num_parse(const char *text, size_t n) {
    char plain[64];
    size_t k = 0, i = 0;
    Wide mantissa = 0;
    int scale = 0;
    bool point = false, wide = false;
    for (; i < n; i++) {
        char c = text[i];
        if (c == '_') continue;
        if (c == '.') {
            point = true;
        } else if (c >= '0' && c <= '9') {
            if (mantissa > ((Wide)1 << 100)) wide = true;
            else mantissa = mantissa * 10 + (c - '0');
            if (point) scale--;
        } else {
            break;
        }
        if (k + 1 < sizeof plain) plain[k++] = c;
    }
    long exponent = 0;
    if (i < n && (text[i] == 'e' || text[i] == 'E')) {
        char *end;
        exponent = strtol(text + i + 1, &end, 10);
        i = (size_t)(end - text);
    }
    plain[k] = 0;
    Num value;
    long shift = scale + exponent;
    if (wide || shift > 18 || shift < -30) {
        value = num_double(strtod(plain, NULL) * pow(10, (double)exponent));
    } else {
        Wide ten = 1;
        for (long s = shift < 0 ? -shift : shift; s; s--) ten *= 10;
        if (shift >= 0 && mantissa > (((Wide)1 << 62) / ten))
            value = num_double((double)mantissa * (double)ten);
        else value = shift >= 0 ? make_num(mantissa * ten, 1) : make_num(mantissa, ten);
    }
    return i < n ? num_mul(value, suffix_factor(text + i, n - i)) : value;
}
