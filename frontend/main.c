// The driver: the table of commands and options, and what is made of it.
#include "frontend/cli.h"

#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "ir/base/debug.h"
#include "ir/base/str.h"
#include "runtime/comm.h"

#define SET {"set", "KEY=VALUE", "override a hyper-parameter (D=256) or a block's key (train.lr=1e-3); repeatable"}
#define COMMON                                                                  \
    {"quiet", NULL, "print results and errors only"},                           \
    {"color", "WHEN", "auto, always or never"},                                 \
    {"help", NULL, "this text"}, {0}
#define MACHINE {"machine", "FILE", "measured rates to choose code by (default: what is known of this CPU)"}
#define COMPILE(targets)                                                        \
    MACHINE,                                                                    \
    {"target", "NAME", targets "; see moec targets"},                           \
    {"target-cpu", "NAME", "native (default), avx512bf16, avx512, avx2 or sse2"},           \
    {"threads", "N", "threads to run with (default: all cores)"}

static const Option check_options[] = {
    SET, {"doc", "NAME", "print the documentation of a function"},
    {"function", "CALL", "elaborate one call alone: 'swiglu(x[B, S, 64], H: 96)'"},
    {"all", NULL, "list every parameter"}, COMMON};
static const Option dump_options[] = {
    SET, {"after", "PASS", "stop after this pass (default: plan-memory); 'input' = before the first"},
    {"passes", "A,B", "run exactly these passes"},
    {"disable", "A,B", "leave these passes out"},
    {"program", "NAME", "pass (default), update, eval or run"},
    {"emit", "WHAT", "ir (default), dot, plan (with the three best tiles by predicted time), llvm or asm"},
    {"html", "FILE", "write one self-contained page: graph, pipeline, memory plan"},
    {"names", NULL, "print the language's names instead of numbers"},
    {"spans", NULL, "print source places"},
    {"full", NULL, "everything, as dump reads it again: equal layers, data of constants"},
    {"verify-each", NULL, "check the graph after every pass"},
    {"time-passes", NULL, "time and node count of each pass"},
    MACHINE,
    {"target-cpu", "NAME", "native (default), avx512bf16, avx512, avx2 or sse2"}, COMMON};
static const Option build_options[] = {
    SET, {"o", "FILE", "the executable to write (default: the model's name)"},
    MACHINE,
    {"target-cpu", "NAME", "native (default), avx512bf16, avx512, avx2 or sse2"}, COMMON};
static const Option train_options[] = {
    SET, {"out", "DIR", "where metrics, checkpoints and logs go (default: runs/MODEL)"},
    {"resume", NULL, "go on from the newest whole checkpoint of --out"},
    {"local", "N", "N ranks, as threads of this process"},
    {"ranks", "N", "N ranks, as processes that mpirun starts and this one supervises"},
    {"hostfile", "FILE", "with --ranks: the hosts, as mpirun reads them"},
    {"launcher", "COMMAND", "with --ranks: what starts processes, given -n N (default: mpirun; 'srun --mpi=pmix')"},
    {"restarts", "N", "start again from the newest checkpoint when a rank is lost, N times in a row (default: 0)"},
    {"elastic", NULL, "go on without a lost host of --hostfile, with fewer data-parallel ranks and the same bits"},
    {"stall-seconds", "S", "a rank that gets nothing done for so long is lost (default: 60)"},
    {"dry-run", NULL, "check everything on all hosts, print plan, layout and command; train nothing"},
    {"trace", "FILE", "write a Chrome trace of one step"},
    {"record-routes", NULL, "write how many rows each route sends to each expert to RUN/routes, for moec plan --routes"},
    COMPILE("cpu (default) or interp"), COMMON};
#define LOCAL {"local", "N", "N ranks, as threads of this process (mpirun -n N moec ..: as processes)"}
static const Option eval_options[] = {SET, LOCAL, COMPILE("cpu (default) or interp"), COMMON};
static const Option generate_options[] = {
    SET, {"prompt", "TEXT", "text to continue (- reads standard input)"},
    {"prompts", "FILE", "a text to continue in each line (- reads standard input); prints a JSON object a line"}, LOCAL,
    {"trace", "FILE", "write a Chrome trace of the prompt and the first tokens"}, COMPILE("cpu (default) or interp"), COMMON};
static const Option plan_options[] = {
    SET, {"machine", "FILE", "a cluster: a JSON file, or the name of one that came with moec (a100-8, h800-2048, ..)"},
    {"local", "N", "instead: N ranks of this machine, by its measured rates"},
    {"write-machine", "FILE", "write the cluster of --local as a file"},
    {"calibrate", "TRACE", "fit efficiencies of ops to a traced run of this layout; --local keeps them for this CPU"},
    {"search", NULL, "look for the best layout of all devices"},
    {"tries", "N", "layouts to compile in a search (default: 16)"},
    {"trace", "FILE", "write the predicted timeline of a step as a Chrome trace"},
    {"assume", "WHAT", "what this runtime doesn't do: overlap, node-rows=N, row-bytes=N; repeatable"},
    {"skew", "S", "experts are chosen as 1, 1/2^S, 1/3^S, .. (default: 0, all alike)"},
    {"routes", "DIR", "rows of experts as a run recorded them (train --record-routes)"},
    {"json", NULL, "print one JSON object"},
    {"threads", "N", "of a rank (default: what the machine file says, or cores / ranks)"},
    {"target", "NAME", "cpu (default) or interp; see moec targets"},
    {"target-cpu", "NAME", "native (default), avx512bf16, avx512, avx2 or sse2"}, COMMON};
static const Option verify_options[] = {
    SET, {"train", NULL, "DIR holds a training curve (batches.safetensors, curve_f64.csv, final.safetensors)"},
    {"model", "FILE", "the .moe file (default: the one whose config hf names the model_type)"},
    {"all", NULL, "print every gradient or step"},
    {"f64", NULL, "with --target ref: compute in double precision"},
    COMPILE("cpu (default), interp or ref"), COMMON};
static const Option bench_options[] = {
    SET, {"json", NULL, "print one JSON object"},
    {"steps", "N", "steps to take the median of (default: 20)"},
    {"warmup", "N", "steps before them (default: 5)"},
    {"local", "N", "N ranks, as threads of this process; a profile or trace is of the first"},
    {"profile", NULL, "where the time goes, in ten lines"},
    {"trace", "FILE", "write a Chrome trace"},
    {"generate", NULL, "a prompt and single tokens, by random weights, of generate.batch sequences at a time"},
    {"decode", NULL, "with --generate: profile and trace single tokens, not the prompt"},
    {"prompt", "N", "tokens of the prompt (default: 512)"},
    {"tokens", "N", "tokens behind it (default: 64)"},
    {"rounds", "N", "prompts to take the median of (default: 5)"},
    {"only", "TEXT", "rows whose name holds this text"},
    {"milliseconds", "N", "to measure each row (default: 200)"},
    {"width", "D", "of tokens (default: 1024)"},
    {"onehot", NULL, "compare with products of masks"},
    {"peer", "FILE", "a shared library with cblas_sgemm, timed in turns with ours"},
    COMPILE("cpu (default) or interp"), COMMON};
static const Option place_options[] = {
    {"ranks", "N", "ranks that experts are shared out to"},
    {"slots", "N", "slots of all ranks; what is more than experts is replicas (default: one an expert)"},
    {"nodes", "N", "nodes that the ranks are on (default: 1)"},
    {"groups", "N", "groups of experts that stay on one node, where nodes divide them (default: 1)"},
    {"json", NULL, "print one JSON list"}, COMMON};
static const Option list_options[] = {COMMON};

const Command commands[] = {
    {"check", "FILE.moe", "parse, type-check, report parameters (total / active), FLOPs per token, bytes",
     "moec check models/tiny_mixtral.moe --set D=256", NULL, check_options, 1, 1, cmd_check},
    {"dump", "FILE.moe|FILE.ir", "print the graph after any pass, the plan, the emitted code, or an HTML page of it all",
     "moec dump models/tiny_mixtral.moe --after=fuse-gating", NULL, dump_options, 1, 1, cmd_dump},
    {"build", "FILE.moe", "compile ahead of time: one executable with train, eval and generate",
     "moec build models/tiny_mixtral.moe -o trainer && ./trainer train --out runs/a", NULL, build_options, 1, 1, cmd_build},
    {"train", "FILE.moe", "compile and train",
     "moec train models/tiny_mixtral.moe --out runs/tiny --set 'train.length=200 steps'",
     "The run's folder gets metrics.jsonl, train.log, TensorBoard events and ckpt/step-NNNNNNNN.  SIGINT and SIGTERM save and\n"
     "exit with status 75; --resume goes on with the same bits.\n"
     "On several ranks --set parallel.ep=4 shares the experts of each MoE layer between groups of 4, parallel.dp is how many\n"
     "groups there are, parallel.tp cuts matrices.  dp, ep and zero change no bit of a step, tp the last ones; any number of\n"
     "ranks resumes what others began.\n"
     "Experts begin by parallel.placement (linear, round_robin, random).  Their rows are counted, and they move between ranks\n"
     "of one node when that would have saved what it takes.  --set 'parallel.rebalance=100 steps' asks each 100 steps, between\n"
     "nodes, too ('0 steps': never), by the rows of parallel.rebalance_window (the same 100 steps) and where it saves\n"
     "parallel.rebalance_gain (1) times what it takes; 0 moves whenever loads say so.\n"
     "parallel.rebalance_groups (of a router that limits tokens to few groups of experts) stay on one node each.\n"
     "With parallel.replicas=8 each MoE layer has 8 slots more than experts: the busiest experts are on 2 or 4 ranks.\n"
     "Bits and checkpoints are not changed by any of it.\n"
     "With --ranks or --restarts this process supervises those that train: it ends all when one is killed, stopped or stuck,\n"
     "says which and where, and begins again from the newest whole checkpoint.  The run's folder then has events.jsonl and\n"
     "log/rank-NNNN.log too.  SIGTERM, SIGINT, SIGHUP and SIGUSR2 save and end, SIGUSR1 saves.\n"
     "Exit status: 0 done; 1 wrong input; 75 stopped by a signal, saved: run it again with --resume; 76 a rank was lost;\n"
     "77 given up: no new checkpoint for N restarts, or the same step failed three times.\n", train_options, 1, 1, cmd_train},
    {"eval", "RUN|CHECKPOINT|DIR", "loss, perplexity and bits per byte on the held-out text",
     "moec eval runs/tiny",
     "On several ranks --set parallel.ep=N shares the experts: a rank reads and holds its own.  The numbers stay the same.\n", eval_options, 1, 1, cmd_eval},
    {"generate", "RUN|CHECKPOINT|DIR", "continue a text",
     "moec generate runs/tiny --prompt 'In the beginning' --set generate.temperature=0.7",
     "On several ranks --set parallel.ep=N shares the experts: a rank reads and holds its own; parallel.tp=N cuts matrices.\n"
     "Prompts are dealt to ranks in turn; who has none computes for the others.  The texts are those of one rank, with tp but\n"
     "for rounding.\n"
     "parallel.placement, rebalance and replicas are as of moec train; a step is a call of the model.\n", generate_options, 1, 1, cmd_generate},
    {"plan", "FILE.moe", "memory, messages and time of training on a described cluster",
     "moec plan models/mixtral.moe --machine a100-8", NULL, plan_options, 1, 1, cmd_plan},
    {"verify", "DIR", "compare with reference results recorded elsewhere: logits, loss, gradients, greedy tokens",
     "moec verify tests/goldens/hf/mixtral", NULL, verify_options, 1, 1, cmd_verify},
    {"bench", "WHAT", "measure the machine and what the compiler makes of it", "moec bench machine",
     "WHAT is\n"
#define BENCH(what, run, options, doc) "  " what ": " doc "\n"
#include "frontend/bench.def"
#undef BENCH
     , bench_options, 1, 1, cmd_bench},
    {"place", "LOADS.json", "share experts out to ranks so that these have alike loads (EPLB)",
     "moec place loads.json --ranks 8 --nodes 2 --slots 16 --groups 4",
     "LOADS.json holds a list of numbers for each layer, the loads of its experts: {\"layers.0\": [90, 132, 40, 61], ..}.\n",
     place_options, 1, 1, cmd_place},
    {"ops", "[NAME]", "the operations of the graph, from their table", "moec ops topk", NULL, list_options, 0, 1, cmd_ops},
    {"passes", "", "the passes, in order, with reasons", "moec passes", NULL, list_options, 0, 0, cmd_passes},
    {"settings", "[BLOCK|KEY]", "what --set BLOCK.KEY=VALUE and the blocks of a file may say, with defaults", "moec settings train",
     NULL, list_options, 0, 1, cmd_settings},
    {"targets", "", "what code can be made for, and what is missing for it", "moec targets", NULL, list_options, 0, 0, cmd_targets},
};
const int n_commands = sizeof commands / sizeof *commands;

// ---- help, man page, completion ---------------------------------------------------------------------------

static void print_options(const Option *o, FILE *out) {
    for (; o->name; o++) {
        char left[64];
        snprintf(left, sizeof left, "%s%s%s%s", o->name[1] ? "--" : "-", o->name, o->arg ? " " : "", o->arg ? o->arg : "");
        fprintf(out, "  %-22s %s\n", left, o->doc);
    }
}

static void print_command_help(const Command *c, FILE *out) {
    fprintf(out, "moec %s %s\n  %s\n\n", c->name, c->args, c->doc);
    print_options(c->options, out);
    if (c->more) fprintf(out, "\n%s", c->more);
    fprintf(out, "\nexample:\n  %s\n", c->example);
}

static void print_help(FILE *out) {
    fprintf(out, "moec " MOEC_VERSION ": a compiler and runtime for mixture-of-experts transformers\n\nusage: moec COMMAND ARGUMENT [--set KEY=VALUE]... [OPTION]...\n\n");
    for (int i = 0; i < n_commands; i++) fprintf(out, "  %-10s %s\n", commands[i].name, commands[i].doc);
    fprintf(out, "\nmoec COMMAND --help tells a command's options.  Exit status: 0 done; 1 the program, a file or the run is\n"
                 "wrong; 2 the command line is wrong; 75 stopped by a signal after saving.\n");
}

static void print_first_steps(FILE *out) {
    fprintf(out, "moec compiles descriptions of mixture-of-experts transformers and runs them.  Try:\n\n"
                 "  moec check models/tiny_mixtral.moe\n"
                 "  moec train models/tiny_mixtral.moe --out runs/tiny --set 'train.length=200 steps'\n"
                 "  moec generate runs/tiny --prompt 'In the beginning'\n\n"
                 "moec --help lists all commands.\n");
}

static void man_text(const char *text, FILE *out) {
    for (; *text; text++) {
        if (*text == '-') fputc('\\', out);
        fputc(*text, out);
    }
}

static void print_man(FILE *out) {
    fprintf(out, ".TH MOEC 1 \"\" \"moec " MOEC_VERSION "\"\n.SH NAME\nmoec \\- compiler and runtime for mixture-of-experts transformers\n"
                 ".SH SYNOPSIS\n.B moec\n.I COMMAND ARGUMENT\n[\\-\\-set KEY=VALUE]... [OPTION]...\n.SH COMMANDS\n");
    for (int i = 0; i < n_commands; i++) {
        const Command *c = &commands[i];
        fprintf(out, ".SS moec %s %s\n", c->name, c->args);
        man_text(c->doc, out);
        fputs(".\n", out);
        if (c->more) { fputs(".PP\n", out); man_text(c->more, out); }
        for (const Option *o = c->options; o->name; o++) {
            fprintf(out, ".TP\n.B \\-%s%s %s\n", o->name[1] ? "\\-" : "", o->name, o->arg ? o->arg : "");
            man_text(o->doc, out);
            fputc('\n', out);
        }
        fputs(".PP\nExample:\n.nf\n  ", out);
        man_text(c->example, out);
        fputs("\n.fi\n", out);
    }
    fputs(".SH EXIT STATUS\n0 done; 1 the program, a file or the run is wrong; 2 the command line is wrong; 75 stopped by a signal after saving.\n", out);
}

static void print_completion(FILE *out) {
    fputs("# bash completion of moec; made by: moec --completion\n_moec() {\n    local cur=${COMP_WORDS[COMP_CWORD]}\n"
          "    if [ \"$COMP_CWORD\" = 1 ]; then COMPREPLY=($(compgen -W \"", out);
    for (int i = 0; i < n_commands; i++) fprintf(out, "%s ", commands[i].name);
    fputs("--help --version\" -- \"$cur\")); return; fi\n    case ${COMP_WORDS[1]} in\n", out);
    for (int i = 0; i < n_commands; i++) {
        fprintf(out, "        %s) words=\"", commands[i].name);
        for (const Option *o = commands[i].options; o->name; o++) fprintf(out, "%s%s ", o->name[1] ? "--" : "-", o->name);
        fputs("\" ;;\n", out);
    }
    fputs("        *) words= ;;\n    esac\n"
          "    case $cur in\n        -*) COMPREPLY=($(compgen -W \"$words\" -- \"$cur\")) ;;\n"
          "        *) COMPREPLY=($(compgen -f -- \"$cur\")) ;;\n    esac\n}\ncomplete -o filenames -F _moec moec\n", out);
}

// ---- parsing ------------------------------------------------------------------------------------------------

const char *cli_value(const Cli *c, const char *option) {
    for (int i = c->given.n - 1; i >= 0; i--)
        if (!strcmp(c->given.at[i].name, option)) return c->given.at[i].value;
    return NULL;
}

bool cli_flag(const Cli *c, const char *option) { return cli_value(c, option) != NULL; }

int cli_finish(Cli *c, int status) {
    fflush(stdout);
    diag_print(c->diag, stderr, c->color);
    return diag_n_errors(c->diag) ? EXIT_WRONG : status;
}

int cli_fail(Cli *c, const char *fmt, ...) {
    va_list ap;
    va_start(ap, fmt);
    Str s = {.arena = c->arena};
    str_vprintf(&s, fmt, ap);
    va_end(ap);
    diag_error(c->diag, (Span){0}, "%s", s.text);
    return cli_finish(c, EXIT_WRONG);
}

int cli_usage(Cli *c, const char *fmt, ...) {
    va_list ap;
    va_start(ap, fmt);
    fputs("moec: ", stderr);
    vfprintf(stderr, fmt, ap);
    fputc('\n', stderr);
    va_end(ap);
    (void)c;
    return EXIT_USAGE;
}

static const Command *find_command(const char *name) {
    for (int i = 0; i < n_commands; i++)
        if (!strcmp(commands[i].name, name)) return &commands[i];
    return NULL;
}

static int unknown(const char *what, const char *word, const char *const *known, int n, const char *dashes) {
    const char *near = did_you_mean(word, known, n);
    if (near) fprintf(stderr, "moec: there is no %s '%s%s'; did you mean '%s%s'?\n", what, dashes, word, dashes, near);
    else fprintf(stderr, "moec: there is no %s '%s%s'; moec --help lists them\n", what, dashes, word);
    return EXIT_USAGE;
}

// One argument that begins with '-': takes its value, perhaps from the next word.  Returns the words used, 0 after an error.
static int parse_option(Cli *c, char **word) {
    const char *text = word[0] + (word[0][1] == '-' ? 2 : 1);
    const char *eq = strchr(text, '=');
    const char *name = eq ? arena_strndup(c->arena, text, (size_t)(eq - text)) : text;
    const char *known[32];
    int n = 0;
    for (const Option *o = c->command->options; o->name; o++) {
        known[n++] = o->name;
        if (strcmp(o->name, name) != 0) continue;
        if (!o->arg && eq) { fprintf(stderr, "moec: --%s takes no value\n", name); return 0; }
        const char *value = eq ? eq + 1 : o->arg ? word[1] : "";
        if (!value) { fprintf(stderr, "moec: --%s needs a value: --%s %s\n", name, name, o->arg); return 0; }
        if (!strcmp(name, "set")) vec_push(c->arena, &c->sets, value);
        else vec_push(c->arena, &c->given, ((Given){o->name, value}));
        return o->arg && !eq ? 2 : 1;
    }
    unknown("option", name, known, n, "--");
    return 0;
}

static bool runs_on_ranks(const Cli *c) {
    return c->command->run == cmd_train || c->command->run == cmd_eval || c->command->run == cmd_generate ||
           c->command->run == cmd_verify || (c->command->run == cmd_bench && strstr(c->args.at[0], ".moe"));
}

static bool choose_color(const char *when) {
    if (when && !strcmp(when, "always")) return true;
    if (when && !strcmp(when, "never")) return false;
    const char *term = getenv("TERM");
    return isatty(2) && !getenv("NO_COLOR") && term && strcmp(term, "dumb") != 0;
}

static int run(Cli *c, int argc, char **argv) {
    const char *wrong = debug_error(c->arena, getenv("MOE_DEBUG"));
    if (wrong) return fprintf(stderr, "moec: %s", wrong), EXIT_USAGE;
    if (debug_on(DEBUG_help)) return fputs(debug_help(c->arena), stdout), EXIT_DONE;
    if (argc < 2) {
        print_first_steps(stdout);
        return EXIT_DONE;
    }
    const char *first = argv[1];
    if (!strcmp(first, "--help") || !strcmp(first, "-h") || !strcmp(first, "help")) {
        const Command *about = argc > 2 ? find_command(argv[2]) : NULL;
        if (about) print_command_help(about, stdout);
        else print_help(stdout);
        return EXIT_DONE;
    }
    if (!strcmp(first, "--version")) return puts("moec " MOEC_VERSION), EXIT_DONE;
    if (!strcmp(first, "--man")) return print_man(stdout), EXIT_DONE;
    if (!strcmp(first, "--completion")) return print_completion(stdout), EXIT_DONE;
    c->command = find_command(first);
    if (!c->command) {
        const char *known[32];
        for (int i = 0; i < n_commands; i++) known[i] = commands[i].name;
        return unknown("command", first, known, n_commands, "");
    }
    bool only_args = false;
    for (int i = 2; i < argc;) {
        if (!only_args && !strcmp(argv[i], "--")) {
            only_args = true;
            i++;
        } else if (!only_args && !strcmp(argv[i], "-h")) {
            print_command_help(c->command, stdout);
            return EXIT_DONE;
        } else if (!only_args && argv[i][0] == '-' && argv[i][1]) {
            int used = parse_option(c, argv + i);
            if (!used) return EXIT_USAGE;
            i += used;
        } else {
            vec_push(c->arena, &c->args, (const char *)argv[i++]);
        }
    }
    if (cli_flag(c, "help")) {
        print_command_help(c->command, stdout);
        return EXIT_DONE;
    }
    if (c->args.n < c->command->least || c->args.n > c->command->most)
        return cli_usage(c, "moec %s takes %s%s, %d given; moec %s --help tells more", c->command->name,
                         c->command->most ? "one argument: " : "no argument", c->command->args, c->args.n, c->command->name);
    if (rt_comm_world_size() > 1 && !runs_on_ranks(c))
        return cli_usage(c, "moec %s runs on one rank, but mpirun started %d", c->command->name, rt_comm_world_size());
    const char *when = cli_value(c, "color");
    if (when && strcmp(when, "auto") && strcmp(when, "always") && strcmp(when, "never"))
        return cli_usage(c, "--color is one of auto, always, never, not '%s'", when);
    c->color = choose_color(when);
    c->quiet = cli_flag(c, "quiet");
    return c->command->run(c);
}

int main(int argc, char **argv) {
    Arena *arena = arena_create();
    Cli c = {.arena = arena, .diag = diag_new(arena), .program = argv[0]};
    int status = run(&c, argc, argv);
    if (fflush(stdout) || ferror(stdout)) {
        perror("moec: standard output");
        status = EXIT_WRONG;
    }
    arena_destroy(arena);
    return status;
}
