// `config hf`: a config.json becomes hyper-parameters.
#ifndef FRONTEND_HF_CONFIG_H
#define FRONTEND_HF_CONFIG_H
#include "frontend/program.h"

// The model_type of a config.json's text; NULL after an error (json_name is told).
const char *hf_model_type(Arena *a, Diag *d, const char *json, const char *json_name);
// The file of models_dir whose `config hf` names model_type; NULL if there is none (no error is reported).
const char *hf_find_model(Arena *a, const char *models_dir, const char *model_type);
// Sets the program's hyper-parameters (and block keys) from the JSON text.  false after errors: a `require`
// that fails, a value of the wrong kind.  Keys that no row reads, requires or ignores are warned about.
bool hf_configure(Program *p, Arena *a, const char *json, const char *json_name);

#endif
