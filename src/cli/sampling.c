/* cli/sampling.c - the sampling options as the engine takes them. */
#include <assert.h>

#include "cli/options.h"

enum status cli_options_sampling(const struct cli_options *options,
                                 struct sampling_params *params_out, struct err *err)
{
    struct sampling_params params;

    sampling_params_init(&params);
    if (options->max_new_tokens >= 0)
        params.max_new_tokens = options->max_new_tokens;
    params.temperature = options->temperature;
    params.top_p = options->top_p;
    params.top_k = options->top_k;
    params.min_p = options->min_p;
    params.frequency_penalty = options->frequency_penalty;
    params.presence_penalty = options->presence_penalty;
    params.repetition_penalty = options->repetition_penalty;
    params.ignore_eos = options->ignore_eos;
    params.skip_special_tokens = !options->keep_special;
    params.no_stop_trim = options->no_stop_trim;
    params.has_seed = options->seed >= 0;
    params.seed = options->seed >= 0 ? (uint64_t)options->seed : 0;
    static_assert(CLI_TEXTS_MAX <= ENGINE_STOP_STRINGS_MAX, "stop strings fit");
    for (size_t i = 0; i < options->stop.count; i++)
        params.stop[params.stop_count++] = options->stop.items[i];
    if (options->stop_token_ids.count > ENGINE_STOP_IDS_MAX)
        return err_set(err, STATUS_BAD_INPUT, "--stop-token-ids: %zu ids, at most %d can be given",
                       options->stop_token_ids.count, ENGINE_STOP_IDS_MAX);
    for (size_t i = 0; i < options->stop_token_ids.count; i++)
        params.stop_ids[params.stop_id_count++] = options->stop_token_ids.ids[i];
    *params_out = params;
    return STATUS_OK;
}
