// Measured rates as JSON: an object with one member per CPU, so that machines of several kinds can share one home.
//   {"NAME": {"threads": 2, .., "rates": [..], "levels": {"L1": {..}, ..}, "tiles": [..]}, ..}
// Rates are in 1e9 a second, times in microseconds.
#ifndef FRONTEND_MACHINE_FILE_H
#define FRONTEND_MACHINE_FILE_H
#include <jansson.h>
#include <stdbool.h>

#include "ir/machine.h"

enum { MACHINE_JSON = JSON_INDENT(1) | JSON_REAL_PRECISION(5) };      // how it is written: nothing is measured to more digits
json_t *machine_json(const Machine *m);                    // the object of one CPU, a new reference

// Reads the object of one CPU.  false: `why` says which member it is, what it is and what it must be.
bool machine_from_json(Machine *m, const char *name, const json_t *object, char why[256]);

// The object of the CPU called `name` in a whole file or, where any will do, of the only one there is.
typedef enum { MACHINE_FOUND, MACHINE_FOREIGN, MACHINE_DAMAGED } MachineFound;
MachineFound machine_in_text(Machine *m, const char *name, bool any, const char *text, size_t n, char why[256]);

#endif
