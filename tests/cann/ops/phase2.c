/* tests/cann/ops/phase2.c - the second phase of every operator, which is the same for all. */
#include "nn.h"

#define PHASE2(need, since, name_, ...)                                                     \
    aclnnStatus aclnn##name_(void *workspace, uint64_t workspace_size, aclOpExecutor *executor, \
                             aclrtStream stream)                                            \
    {                                                                                       \
        ENTER(aclnn##name_);                                                                \
        return executor_execute("aclnn" #name_, workspace, workspace_size, executor, stream); \
    }
CANN_OPERATORS(PHASE2)
