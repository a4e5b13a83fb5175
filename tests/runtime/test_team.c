// Threads of a team meet at every barrier, whether there are more of them than cores or fewer.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include "runtime/team.h"

enum { MOST = 9, ROUNDS = 40 };

typedef struct {
    RtTeam *team;
    int threads, wrong[MOST];
    int at[MOST];                    // plain: the barrier must make writes visible
} Meeting;

static void meet(void *arg, int thread) {
    Meeting *m = arg;
    for (int round = 1; round <= ROUNDS; round++) {
        m->at[thread] = round;
        rt_team_barrier(m->team, thread);
        for (int i = 0; i < m->threads; i++) m->wrong[thread] += m->at[i] != round;
        rt_team_barrier(m->team, thread);
    }
}

static void all_meet(void **state) {
    for (int threads = 1; threads <= MOST; threads++) {
        Meeting m = {.team = rt_team_open(threads), .threads = threads};
        assert_non_null(m.team);
        for (int run = 0; run < 20; run++) rt_team_run(m.team, meet, &m);
        rt_team_close(m.team);
        for (int i = 0; i < threads; i++) {
            assert_int_equal(m.wrong[i], 0);
            assert_int_equal(m.at[i], ROUNDS);
        }
    }
}

static void idle_teams_end(void **state) {
    for (int i = 0; i < 50; i++) rt_team_close(rt_team_open(4));
    rt_team_close(NULL);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(all_meet), cmocka_unit_test(idle_teams_end)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
