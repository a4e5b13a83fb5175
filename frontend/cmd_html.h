// `moec dump --html`: one self-contained page with the graph, what each pass did, and the memory plan.
// Usage: html_new; html_program per graph, with html_seen as RunOpts.seen while its passes run; html_write.
#ifndef FRONTEND_CMD_HTML_H
#define FRONTEND_CMD_HTML_H
#include "ir/ir.h"

typedef struct Html Html;

Html *html_new(Arena *a, const Diag *d, const char *model, const char *file);
void  html_fact(Html *h, const char *name, const char *value);          // a line of the page's head: "parameters", "3.5 M"
void  html_program(Html *h, const char *name);                         // what follows belongs to this program
void  html_select(Html *h, int program);                              // back to the program made as number `program`
void  html_seen(void *html, const char *pass, const Graph *g, double seconds);
void  html_kernel(Html *h, const Node *n, const char *kernel);         // the code that runs a node of the last graph seen
bool  html_write(Html *h, const char *path);                           // false: errno says why; nothing is left behind

#endif
