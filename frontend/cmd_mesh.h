// The parallel block as a mesh of ranks: what holds of every run and of every plan.
#ifndef FRONTEND_CMD_MESH_H
#define FRONTEND_CMD_MESH_H
#include "frontend/blocks.h"
#include "ir/base/diag.h"
#include "runtime/abi.h"

// RtMesh.etp: parallel.etp, 0 where it is none or nothing is cut.
int32_t mesh_etp(const Settings *t);
// So many ranks (of a pipeline's stage); parallel.dp, where it is none, takes what ep and tp leave.  false after an error.
bool mesh_shape(Diag *d, const Settings *t, int64_t ranks, RtMesh *out);
// Can every rank that holds other sequences have lanes of its own, all the same number?  false after an error.
bool mesh_deals_lanes(Diag *d, const Settings *t, RtMesh m, int64_t lanes);

#endif
