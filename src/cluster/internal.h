/* cluster/internal.h - a cluster over any module: what cluster.c and its tests share. */
#ifndef LIGHTER_CLUSTER_INTERNAL_H
#define LIGHTER_CLUSTER_INTERNAL_H

#include "cluster/module.h"

/* A cluster over the table of functions, which has been opened. */
enum status cluster__open_module(const struct cluster_module *module,
                                 struct cluster **cluster_out, struct err *err);

#endif
