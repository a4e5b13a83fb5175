// LLVM helpers for CPU kernels.  A kernel is one function `void f(const RtCall *)`; vectors are always 16
// lanes, which LLVM splits for narrower machines, so every target adds in the same order.
//
// Integers that count or index are i64.  Vectors of floats are <16 x float> whatever the storage: loads and
// stores convert bf16 and f16; bool is <16 x i1> in registers and one byte in memory; i32 is <16 x i32>.
#ifndef CODEGEN_CPU_CG_H
#define CODEGEN_CPU_CG_H
#include <llvm-c/Core.h>
#include <llvm-c/TargetMachine.h>
#include "codegen/kernel.h"

#define KERNEL(OP, describe, emit) DescribeFn describe; EmitFn emit;
#include "codegen/cpu/kernels.def"
#undef KERNEL
const KernelTemplate *cpu_template(Op op);             // NULL: none

typedef LLVMValueRef LV;
typedef LLVMTypeRef  LT;

// A row of the table of machines (cpu.c).
typedef struct CpuTarget {
    const char *name;          // avx512 avx2 sse2 native
    const char *cpu;           // LLVM's name
    const char *features;      // "" or the host's feature string
    bool fma;                  // false: cg_fma is a product and a sum
    int  vector_bytes;         // width of a register: 64, 32, 16
    int  n_registers;          // vector registers
    bool bf16_dot, int8_dot;   // cg_bf16_dot, cg_int8_dot are single instructions
    bool dot;                  // contractions of bf16 use the former (dot.h)
} CpuTarget;

enum { LANES = 16, CG_MAX_CARRY = 64, CG_PART_NAME = 96 };

// Functions beside a kernel's own: modules by themselves, so that kernels with the same ones share their code.
typedef struct { LLVMModuleRef module; char name[CG_PART_NAME]; } CgPart;
typedef struct { CgPart *at; int n; } CgParts;

struct Cg {
    const CpuTarget  *target;
    const KernelNode *k;
    LLVMContextRef cx;
    LLVMModuleRef  module;
    CgParts *parts;
    LLVMBuilderRef b;
    LV fn;                     // function being emitted
    LV call;                   // const RtCall *, in the kernel itself
    LLVMBasicBlockRef entry;   // holds allocas
    LV arg[2 * MAX_NAMED + 64];   // base addresses, by argument number; valid in the kernel itself
    int n_args;
    LV  task, n_tasks, phase, thread, scratch;
    LT void_t, i1, i8, i16, i32, i64, f32, f64, ptr;
    LT v1, v8, v16, vi32, vi64, vf32, vf64;        // 16 lanes of i1 i8 i16 i32 i64 f32 f64
};

// ---- operands of the step ------------------------------------------------------------------------------
LV cg_arg(Cg *cg, int i);              // address of operand or result i (results follow operands)
LV cg_in(Cg *cg, int i);               // = cg_arg(i)
LV cg_out(Cg *cg, int i);              // = cg_arg(n_in + i)
LV cg_workspace(Cg *cg);               // KernelDesc.workspace bytes, 64-byte aligned
void cg_kernel_begin(Cg *cg, const char *symbol);    // cg->k's function up to where its body starts
LV cg_sym(Cg *cg, const Sym *s);       // its value now, i64; a constant for leaf symbols
LV cg_dim(Cg *cg, Dim d);
// The columns of row `number` of a table of sequences (runtime/abi.h), i64.
void cg_sequence(Cg *cg, LV table, LV number, LV *column);
LV cg_rows(Cg *cg, const Type *t);     // product of all dimensions but the last
LV cg_elements(Cg *cg, const Type *t);
LV cg_dims(Cg *cg, const Type *t, int lo, int hi);   // product of dimensions lo .. hi - 1

// ---- constants -----------------------------------------------------------------------------------------
LV cg_int(Cg *cg, int64_t n);          // i64
LV cg_int32(Cg *cg, int32_t n);
LV cg_bool(Cg *cg, bool x);            // i1
LV cg_float(Cg *cg, float x);          // exactly x
LV cg_splat(Cg *cg, LV scalar);        // all 16 lanes
LV cg_vec(Cg *cg, float x);            // <16 x float> constant
LV cg_vec_int(Cg *cg, int32_t n);      // <16 x i32> constant
LV cg_lanes(Cg *cg);                   // <16 x i32> 0 1 2 .. 15
LV cg_zero(LT t);

// ---- i64 arithmetic ------------------------------------------------------------------------------------
LV cg_add(Cg *cg, LV a, LV b);
LV cg_sub(Cg *cg, LV a, LV b);
LV cg_mul(Cg *cg, LV a, LV b);
LV cg_div(Cg *cg, LV a, LV b);         // both not negative
LV cg_rem(Cg *cg, LV a, LV b);
LV cg_min(Cg *cg, LV a, LV b);
LV cg_max(Cg *cg, LV a, LV b);
LV cg_addi(Cg *cg, LV a, int64_t n);
LV cg_muli(Cg *cg, LV a, int64_t n);
LV cg_lt(Cg *cg, LV a, LV b);          // i1, signed
LV cg_eq(Cg *cg, LV a, LV b);
LV cg_select(Cg *cg, LV c, LV a, LV b);
LV cg_i64(Cg *cg, LV i32);             // sign-extended

// ---- control -------------------------------------------------------------------------------------------
// for (i = lo; i < hi; i += step) with carried values:
//     CgLoop l;  cg_loop_begin(cg, &l, lo, hi, step, n, init);  .. l.carry[j] ..  cg_loop_end(cg, &l, next);
// After the end l.carry[j] are the final values and l.i the first i that failed.
typedef struct {
    LLVMBasicBlockRef head, body, exit;
    LV  i, step, carry[CG_MAX_CARRY];
    int n;
} CgLoop;
void cg_loop_begin(Cg *cg, CgLoop *l, LV lo, LV hi, int64_t step, int n, const LV *init);
void cg_loop_end(Cg *cg, CgLoop *l, const LV *next);
// Without carried values.
void cg_for(Cg *cg, CgLoop *l, LV lo, LV hi, int64_t step);
void cg_end(Cg *cg, CgLoop *l);

// if (c) { .. } else { .. }; values meet by cg_if_join or in allocas.
typedef struct { LLVMBasicBlockRef yes, no, exit, yes_end; bool has_else; } CgIf;
void cg_if(Cg *cg, CgIf *f, LV cond);
void cg_else(Cg *cg, CgIf *f);
void cg_endif(Cg *cg, CgIf *f);
// Ends an if with else, and gives n values that are yes[j] from the first branch and no[j] from the second.
void cg_endif_join(Cg *cg, CgIf *f, int n, const LV *yes, const LV *no, LV *out);
void cg_if_phase(Cg *cg, CgIf *f, int phase);        // if (c->phase == phase)

// A function of its own (CgParts), never inlined; begin leaves the kernel, end returns to it.  Parameters: LLVMGetParam(fn, i).
// From end on, fn is its name in the kernel's module.  Nothing of the kernel but constants may be used inside.
typedef struct {
    LV fn, saved_fn;
    LLVMModuleRef saved_module;
    LLVMBasicBlockRef saved_block, saved_entry;
    LT type;
    char name[40];
} CgFunction;
void cg_function_begin(Cg *cg, CgFunction *f, const char *name, LT result, const LT *params, int n_params);
void cg_function_end(Cg *cg, CgFunction *f);         // adds `ret void` if the block is open
extern const char cg_passes[];                       // of LLVM, over each module
// A module like another; the attributes that functions of this machine have.
LLVMModuleRef cg_module(LLVMContextRef cx, LLVMModuleRef like, const char *name);
void cg_target_attributes(Cg *cg, LLVMModuleRef module);
LV   cg_call(Cg *cg, LT type, LV fn, const LV *args, int n);
LV   cg_extern(Cg *cg, const char *name, LT type);   // declares a function of the process (libm)
LV   cg_alloca(Cg *cg, LT t, int64_t n, int align);  // in the entry block
LV   cg_intrinsic(Cg *cg, const char *name, const LT *overload, int n_overload, const LV *args, int n_args);

// ---- memory --------------------------------------------------------------------------------------------
LT cg_storage(Cg *cg, DType t);                      // f32 i16 (bf16, f16) i32 i8
LV cg_gep(Cg *cg, LT elem, LV base, LV index);       // base + index elements
LV cg_at(Cg *cg, DType t, LV base, LV index);        // address of element `index`
LV cg_bytes(Cg *cg, LV base, LV n);                  // base + n bytes
LV cg_load(Cg *cg, LT t, LV at, int align);
void cg_store(Cg *cg, LV x, LV at, int align);
// 16 lanes to a multiple of 64 bytes, past the caches.  Other threads see them behind the next locked instruction: taking
// another task is one.
void cg_stream(Cg *cg, LV x, LV at);
// One element: f32, i32 or i1 in registers.
LV cg_load1(Cg *cg, DType t, LV base, LV index);
void cg_store1(Cg *cg, DType t, LV x, LV base, LV index);
// 16 consecutive elements from `index`.  mask NULL: all; else <16 x i1>, lanes without it are not touched and
// load 0.
LV cg_load_vec(Cg *cg, DType t, LV base, LV index, LV mask);
void cg_store_vec(Cg *cg, DType t, LV x, LV base, LV index, LV mask);
// 16 elements at base + index[lane] (<16 x i32>, in elements).
LV cg_gather_vec(Cg *cg, DType t, LV base, LV index, LV mask);
LV cg_tail_mask(Cg *cg, LV n_left);                  // lane < n_left (i64)
void cg_prefetch(Cg *cg, LV at, bool write, int locality);   // locality 3 L1, 2 L2, 1 L3
// No load moves over this place: the scheduler would need more registers than there are.
void cg_loads_in_order(Cg *cg);
LV cg_table(Cg *cg, const Node *n, DType t);         // the elements of a CONST node, in the module
void cg_memcpy(Cg *cg, LV to, LV from, LV bytes);
void cg_memset0(Cg *cg, LV to, LV bytes);

// ---- float arithmetic, scalars or vectors --------------------------------------------------------------
LV cg_fadd(Cg *cg, LV a, LV b);
LV cg_fsub(Cg *cg, LV a, LV b);
LV cg_fmul(Cg *cg, LV a, LV b);
LV cg_fdiv(Cg *cg, LV a, LV b);
LV cg_fneg(Cg *cg, LV a);
LV cg_fma(Cg *cg, LV a, LV b, LV c);                 // a*b + c in one rounding; without fma in two
// Where the target has them: acc + products of the two bf16 (the four u8 with the four i8) that lie in each lane.  <16 x i32>
// operands.  A bf16 dot has its own inner order and rounding, which the plan must name.
LV cg_bf16_dot(Cg *cg, LV acc, LV a, LV b);
LV cg_int8_dot(Cg *cg, LV acc, LV a, LV b);
LV cg_fmax(Cg *cg, LV a, LV b);                      // a >= b or b is NaN ? a : b, as OP_MAX
LV cg_fmin(Cg *cg, LV a, LV b);
LV cg_sqrt(Cg *cg, LV a);
// Floats as integers of the same order: equal zeros; NaN is INT32_MIN + 1, below all numbers.
LV cg_order_key(Cg *cg, LV x);
// vmath.c: the functions of ir/vmath.h, same operations in the same order.  <16 x float>.
LV cg_exp(Cg *cg, LV x);
LV cg_exp_down(Cg *cg, LV x);                        // of x <= 0 or NaN: the same bits
void cg_exp_two(Cg *cg, LV x[2]);                    // in place; the chains of one hide the latencies of the other
void cg_exp_down_two(Cg *cg, LV x[2]);
LV cg_log(Cg *cg, LV x);
LV cg_log1p(Cg *cg, LV x);
LV cg_tanh(Cg *cg, LV x);
LV cg_sigmoid(Cg *cg, LV x);
LV cg_erf(Cg *cg, LV x);
LV cg_sin(Cg *cg, LV x);
LV cg_cos(Cg *cg, LV x);
// Lanes to one: fold 8, 4, 2, 1.
LV cg_fold_sum(Cg *cg, LV v);                        // float (or i32) vector -> scalar
LV cg_fold_max(Cg *cg, LV v);
// The tree of abi.h over n rows of `stride` elements (f32, i32) at base: 16 columns from col.  Overwrites the
// rows, gives the sum.  n >= 1, an LV.
LV cg_tree(Cg *cg, LV base, LV n, LV stride, LV col, LV mask);
LV cg_tree_int(Cg *cg, LV base, LV n, LV stride, LV col, LV mask);

// ---- bodies (body.c) -----------------------------------------------------------------------------------
// Evaluates an elementwise body (epilogues) for 16 columns of one row.  arg(self, cg, n) gives the vector of
// ARG node n; results[] gets one vector per operand of the body's YIELD.
typedef struct {
    LV (*arg)(void *self, Cg *cg, const Node *arg_node);
    void *self;
} BodyArgs;
bool body_is_elementwise(const Graph *body);
void cg_body(Cg *cg, const Graph *body, const BodyArgs *args, LV *results);
// 16 columns from `col` of row `row` of the space, of an operand that broadcasts to it.
LV cg_load_broadcast(Cg *cg, LV base, const Type *operand, const Type *space, LV row, LV col, LV mask);

#endif
