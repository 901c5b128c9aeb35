/* checkpoint/convert/convert.h - a checkpoint becomes a GGUF file, its weights in other types.
 *
 *     plan      every tensor of the file to be: name, type, shape, and the views of the
 *               checkpoint's tensors that fill it, one behind the other (plan.c)
 *     pieces    runs of a tensor's rows that fit a thread's buffers; each is read, turned into the
 *               type and written to its place by whichever thread is free (convert.c)
 *
 * The file is written beside its place, as NAME.part.gguf, and renamed when it is complete and on
 * the disk. Where it is too large, several are written so, NAME-00001-of-00003.gguf and so on, and
 * renamed together: the first, without which the others are nothing, last, and one that was there
 * before goes first. Behind the place of the first's last byte stands how far they are, so that a
 * run that was interrupted, however hard, is taken up by the next one with the same options over
 * the same files. The bytes do not depend on threads, memory, or interruptions.
 *
 * Threads: one thread opens, runs and closes. */
#ifndef LIGHTER_CHECKPOINT_CONVERT_CONVERT_H
#define LIGHTER_CHECKPOINT_CONVERT_CONVERT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/log.h"
#include "base/progress.h"
#include "base/status.h"
#include "checkpoint/checkpoint.h"

#define CONVERT_RULES_MAX 16
#define CONVERT_MEMORY_BYTES (UINT64_C(256) << 20)

struct convert;

struct convert_rule {
    const char *glob;             /* of the names in the file: "*.attn_v.weight" */
    enum dtype dtype;             /* dtype_is_target */
};

/* Texts are borrowed until convert_close. */
struct convert_options {
    const char *out;              /* the file to be, NAME.gguf */
    const char *type;             /* one of convert_type_names */
    struct convert_rule rules[CONVERT_RULES_MAX]; /* the first that fits goes before the type */
    size_t rule_count;
    const char *pre;              /* how text is cut before its tokens, by GGUF's names; NULL: by
                                     the folder's tokenizer.json */
    uint32_t thread_count;        /* at least 1 */
    uint64_t split_max_bytes;     /* a file is no larger; 0: there is one file */
    uint64_t memory_budget_bytes; /* for buffers and tables; 0: CONVERT_MEMORY_BYTES */
    uint32_t save_interval_ms;    /* how often is noted how far it is; 0: after every step */
};

struct convert_summary {
    size_t tensor_count;
    uint64_t weight_count;        /* elements of all tensors */
    size_t file_count;
    uint64_t source_bytes, out_bytes; /* of the tensors read, and of all files */
    uint64_t resumed_bytes;       /* of the data, that an earlier run had written */
    uint64_t memory_bytes;        /* of buffers and tables */
    uint32_t thread_count;        /* as many as the memory is enough for */
    bool requantises;             /* something was in a quantised type before, and gets another */
    bool has_tokenizer;
};

/* "F32, F16, ... Q6_K", for messages; and whether the name is one of them, in any case. */
const char *convert_type_names(void);
bool convert_has_type(const char *name);

/* Plans, checks, and makes the partial file or takes it up. The checkpoint is borrowed. What is
 * already wrong is told here, before anything long. The caller owns *convert_out. */
enum status convert_open(const struct ckpt *ckpt, const struct convert_options *options,
                         struct convert **convert_out, struct err *err);
/* The partial file, the first of several; its header is complete from the beginning, as are those
 * of the others. */
const char *convert_part_path(const struct convert *convert);
/* Where it will be. */
const char *convert_out_path(const struct convert *convert);
const struct convert_summary *convert_summary(const struct convert *convert);
/* Does the rest of the work and puts the file in its place. After a failure the partial file stays
 * for the next run, unless nothing was done. */
enum status convert_run(struct convert *convert, const struct progress *progress,
                        struct err *err);
/* Removes a partial file in which nothing was done. NULL is fine. */
void convert_close(struct convert *convert);

#endif
