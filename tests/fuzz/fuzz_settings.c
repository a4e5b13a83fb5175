// JSON of a run's settings up to an empty line, then a key=value a line.  What is taken is written as JSON
// that is taken again and says the same.
#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include "runtime/settings.h"
#include "tests/fuzz/fuzz.h"

void fuzz_settings(const uint8_t *data, size_t n) {
    char *text = malloc(n + 1);
    memcpy(text, data, n);
    text[n] = 0;
    char *lines = strstr(text, "\n\n");
    if (lines) *lines = 0, lines += 2;
    RtSettings *s = NULL, *again = NULL;
    RtError e;
    if (rt_settings_open(text, "/base", &s, &e) == RT_OK) {
        for (char *next; lines && *lines; lines = next) {
            next = strchr(lines, '\n');
            if (next) *next++ = 0;
            rt_settings_set(s, lines, &e);
        }
        char *json = rt_settings_json(s);
        assert(json);
        assert(rt_settings_open(json, "/elsewhere", &again, &e) == RT_OK);
        char *json_again = rt_settings_json(again);
        assert(!strcmp(json, json_again));
        free(json);
        free(json_again);
    }
    rt_settings_close(s);
    rt_settings_close(again);
    free(text);
}
