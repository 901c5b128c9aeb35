/* model/refuse_test.c - checkpoints, options and budgets that a model must not be made of.
 *
 * A golden checkpoint with one field of its config.json changed no longer fits its tensors: each
 * refusal must name the tensor and the numbers. A budget that is too small must be refused with the
 * smallest one that would do; that one must then work, and one byte less must not. */
#include <sys/mman.h>
#include <unistd.h>

#include "cluster/testing.h"
#include "model/testing.h"

struct folder {
    char path[64];
    char config[96], generation[96], weights[96];
};

static void write_json(const char *path, const json_t *json)
{
    assert_int_equal(json_dump_file(json, path, 0), 0);
}

/* A folder with a golden's weights and its config.json, in which the fields of `edit` are
 * replaced. */
static struct folder folder_create(const char *name, const char *edit)
{
    struct folder folder = { "/tmp/lighter-refuse-XXXXXX", "", "", "" };
    char golden[256], target[4096 + 128], here[4096];
    json_t *config = NULL, *changes = NULL;
    struct err err;

    assert_non_null(mkdtemp(folder.path));
    (void)snprintf(folder.config, sizeof(folder.config), "%s/config.json", folder.path);
    (void)snprintf(folder.generation, sizeof(folder.generation), "%s/generation_config.json",
                   folder.path);
    (void)snprintf(folder.weights, sizeof(folder.weights), "%s/model.safetensors", folder.path);
    (void)snprintf(golden, sizeof(golden), GOLDEN_FOLDER "/%s/config.json", name);
    assert_int_equal(json_read_file(golden, 1 << 20, &config, &err), STATUS_OK);
    assert_int_equal(json_read(edit, strlen(edit), "edit", &changes, &err), STATUS_OK);
    assert_int_equal(json_object_update(config, changes), 0);
    write_json(folder.config, config);
    assert_non_null(getcwd(here, sizeof(here)));
    (void)snprintf(target, sizeof(target), "%s/" GOLDEN_FOLDER "/%.32s/model.safetensors", here,
                   name);
    assert_int_equal(symlink(target, folder.weights), 0);
    json_decref(config);
    json_decref(changes);
    return folder;
}

static void folder_destroy(const struct folder *folder)
{
    (void)unlink(folder->config);
    (void)unlink(folder->generation);
    (void)unlink(folder->weights);
    (void)rmdir(folder->path);
}

static const struct refusal {
    const char *golden, *edit;
    const char *said[3];
} refusals[] = {
    { "llama_gqa_tied", "{\"num_hidden_layers\": 3}",
      { "model.layers.2.input_layernorm.weight", "missing" } },
    { "llama_gqa_tied", "{\"num_hidden_layers\": 1024}", { "model.layers.2.", "missing" } },
    { "llama_gqa_tied", "{\"num_hidden_layers\": 1}",
      { "model.layers.1.", "unexpected", "9 such tensors" } },
    { "llama_gqa_tied", "{\"tie_word_embeddings\": false}", { "lm_head.weight", "missing" } },
    { "llama_gqa_tied", "{\"intermediate_size\": 40}",
      { "model.layers.0.mlp.gate_proj.weight", "[48, 32]", "[40, 32]" } },
    { "llama_gqa_tied", "{\"vocab_size\": 65}", { "model.embed_tokens.weight", "[65, 32]" } },
    { "llama_gqa_tied", "{\"num_key_value_heads\": 4}", { "k_proj.weight", "[16, 32]" } },
    { "llama_gqa_tied", "{\"attention_bias\": true}", { "q_proj.bias", "missing" } },
    { "llama_gqa_tied", "{\"mlp_bias\": true}", { "gate_proj.bias", "missing" } },
    { "llama_gqa_tied", "{\"hidden_size\": 64}", { "[64, 32]", "[64, 64]" } },
    { "llama_gqa_tied", "{\"architectures\": [\"Qwen3ForCausalLM\"]}", { "q_norm", "missing" } },
    { "llama_gqa_tied", "{\"architectures\": [\"DeepseekV3ForCausalLM\"]}", { "latent" } },
    { "qwen3", "{\"architectures\": [\"LlamaForCausalLM\"]}",
      { "model.layers.0.self_attn.k_norm.weight [16]", "unexpected", "4 such tensors" } },
    { "deepseek_v3", "{\"n_routed_experts\": 12}", { "mlp.experts.8.gate_proj", "missing" } },
    { "deepseek_v3", "{\"n_routed_experts\": 1024}", { "mlp.experts.8.gate_proj", "missing" } },
    { "deepseek_v3", "{\"n_routed_experts\": 4, \"n_group\": 2}",
      { "model.layers.1.mlp.gate.weight", "[8, 32]", "[4, 32]" } },
    { "deepseek_v3", "{\"n_shared_experts\": 0}", { "shared_experts", "unexpected" } },
    { "deepseek_v3", "{\"first_k_dense_replace\": 2}", { "layers.1.mlp.gate_proj", "missing" } },
    { "deepseek_v3", "{\"first_k_dense_replace\": 0}", { "layers.0.mlp.gate.weight", "missing" } },
    { "deepseek_v3", "{\"kv_lora_rank\": 12}", { "kv_a_proj_with_mqa.weight", "[16, 32]" } },
    { "gemma2", "{\"hidden_activation\": \"gelu\"}", { "hidden_activation", "gelu" } },
    { "gemma2", "{\"use_bidirectional_attention\": true}", { "bidirectional" } },
    { "gemma3", "{\"rope_parameters\": {\"sliding_attention\": {\"rope_type\": \"linear\"}}}",
      { "layers with a window", "default" } },
    { "gemma3", "{\"rope_local_base_freq\": 0}", { "rope_local_base_freq" } },
    { "gemma3_sees", "{\"text_config\": null}", { "text_config" } },
    { "gpt_oss", "{\"swiglu_limit\": 5.0}", { "swiglu_limit", "5", "1.702" } },
    { "gpt_oss", "{\"rope_scaling\": null}", { "rope_scaling", "rope_parameters" } },
    { "gpt_oss", "{\"num_local_experts\": 0}", { "num_local_experts" } },
    { "gpt_oss", "{\"num_local_experts\": 7}", { "router.weight", "[8, 32]", "[7, 32]" } },
    { "gpt_oss", "{\"attention_bias\": false}", { "_proj.bias", "unexpected", "8 such tensors" } },
    { "deepseek_v3", "{\"v_head_dim\": 8}", { "kv_b_proj.weight", "[64, 16]" } },
    { "deepseek_v3", "{\"q_lora_rank\": null}", { "self_attn.q_proj.weight", "missing" } },
    { "deepseek_v3", "{\"num_nextn_predict_layers\": 0}",
      { "model.layers.2.", "unexpected", "2 such tensors" } },
    { "qwen3_moe_mixed", "{\"num_local_experts\": 9}", { "mlp.experts.8.gate_proj", "missing" } },
    { "qwen3_moe_mixed", "{\"num_local_experts\": 7}",
      { "model.layers.1.mlp.gate.weight", "[8, 32]", "[7, 32]" } },
    { "qwen3_moe_mixed", "{\"num_local_experts\": 0}", { "layers.1.mlp.gate_proj", "missing" } },
    { "qwen3_moe_mixed", "{\"mlp_only_layers\": []}", { "layers.0.mlp.gate.weight", "missing" } },
    { "qwen3_moe_mixed", "{\"moe_intermediate_size\": 13}",
      { "model.layers.1.mlp.experts.0.gate_proj.weight", "[12, 32]", "[13, 32]" } },
    { "qwen3_moe_mixed", "{\"architectures\": [\"Qwen3ForCausalLM\"]}",
      { "layers.1.mlp.gate_proj", "missing" } },
    { "qwen3_moe_mixed", "{\"architectures\": [\"MixtralForCausalLM\"]}",
      { "layers.0.block_sparse_moe.gate.weight", "missing" } },
    { "mixtral", "{\"num_local_experts\": 9}", { "block_sparse_moe.experts.8.w1", "missing" } },
    { "mixtral", "{\"intermediate_size\": 16}",
      { "model.layers.0.block_sparse_moe.experts.0.w1.weight", "[12, 32]", "[16, 32]" } },
    { "mixtral_fused", "{\"intermediate_size\": 16}",
      { "model.layers.0.mlp.experts.gate_up_proj", "[8, 24, 32]", "[8, 32, 32]" } },
    { "mixtral_fused", "{\"num_local_experts\": 9}", { "mlp.gate.weight", "[8, 32]", "[9, 32]" } },
    { "deepseek_v3", "{\"architectures\": [\"DeepseekV2ForCausalLM\"], \"topk_method\": "
      "\"greedy\"}", { "e_score_correction_bias", "unexpected" } },
    { "deepseek_v3", "{\"quantization_config\": {\"quant_method\": \"hqq\"}}", { "hqq" } },
};

static void tensors_that_don_t_fit_are_named(void **state)
{
    const struct setting setting = { .device = "cpu" };

    (void)state;
    for (size_t i = 0; i < sizeof(refusals) / sizeof(refusals[0]); i++) {
        const struct refusal *refusal = &refusals[i];
        struct folder folder = folder_create(refusal->golden, refusal->edit);
        struct loaded loaded;
        struct err err;

        if (harness_try(folder.path, &setting, NULL, &loaded, &err) != STATUS_BAD_INPUT)
            fail_msg("%s with %s was not refused", refusal->golden, refusal->edit);
        if (strstr(err.message, folder.path) == NULL)
            fail_msg("%s: \"%s\" does not name the folder", refusal->edit, err.message);
        for (size_t k = 0; k < 3 && refusal->said[k] != NULL; k++)
            if (strstr(err.message, refusal->said[k]) == NULL)
                fail_msg("%s: \"%s\" does not say \"%s\"", refusal->edit, err.message,
                         refusal->said[k]);
        folder_destroy(&folder);
    }
}

static void inspect_tells_the_same(void **state)
{
    struct folder folder = folder_create("deepseek_v3", "{\"kv_lora_rank\": 12}");
    struct model_info info;
    struct ckpt *ckpt = NULL;
    struct err err;

    (void)state;
    assert_int_equal(ckpt_open(folder.path, &ckpt, &err), STATUS_OK);
    assert_int_equal(model_inspect(ckpt, &info, &err), STATUS_BAD_INPUT);
    assert_non_null(strstr(err.message, "kv_a_proj_with_mqa"));
    assert_string_equal(info.architecture, "DeepseekV3ForCausalLM");
    assert_int_equal(info.layer_count, 2);
    ckpt_close(ckpt);
    folder_destroy(&folder);
    assert_int_equal(ckpt_open(GOLDEN_FOLDER "/deepseek_v3", &ckpt, &err), STATUS_OK);
    assert_int_equal(model_inspect(ckpt, &info, &err), STATUS_OK);
    assert_int_equal(info.weight_dtype, DTYPE_BF16);
    assert_int_equal(info.vocab_size, 64);
    assert_int_equal(info.kv_bytes_per_token, 2 * (16 + 4) * sizeof(float));
    assert_true(info.parameter_count > 20000 && info.weight_bytes > 2 * info.parameter_count);
    ckpt_close(ckpt);
}

static void options_that_don_t_fit_are_refused(void **state)
{
    static const struct {
        struct setting setting;
        const char *said;
    } all[] = {
        { { .context_length = 513 }, "513" },
        { { .dtype = "int8" }, "int8" },
        { { .dtype = "i32" }, "i32" },
        { { .row_count_max = 1 << 20 }, "1048576" },
        { { .page_size = 1 << 20 }, "1048576" },
        { { .kv_token_count = UINT64_C(1) << 40 }, "1099511627776" },
        { { .kv_dtype = DTYPE_BF16 }, "not BF16" },
        { { .kv_dtype = DTYPE_Q8_0 }, "blocks of 32 elements, and this model's heads have 16: "
                                      "--kv-cache-dtype f16 works" },
    };

    (void)state;
    for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++) {
        struct loaded loaded;
        struct err err;

        assert_int_equal(harness_try(GOLDEN_FOLDER "/qwen3", &all[i].setting, NULL, &loaded, &err),
                         STATUS_BAD_INPUT);
        if (strstr(err.message, all[i].said) == NULL)
            fail_msg("\"%s\" does not say \"%s\"", err.message, all[i].said);
    }
}

static void a_context_within_the_window_has_none(void **state)
{
    const struct setting setting = { .context_length = 100 };
    struct folder folder = folder_create("mistral", "{\"sliding_window\": 100}");
    struct golden golden = golden_read("mistral");
    struct loaded loaded = harness_open(folder.path, &setting);
    float *logits = logits_alloc(loaded.model, golden.prompt_count);
    const struct paging paging = { 0, 1 };
    const uint32_t vocab_size = model_info(loaded.model)->vocab_size;

    (void)state;
    assert_int_equal(model_info(loaded.model)->context_length, 100);
    assert_int_equal(model_info(loaded.model)->sliding_window, 0);
    assert_int_equal(model_info(loaded.model)->kv_window_page_count, 0);
    harness_run(loaded.model, golden.prompt, 0, golden.prompt_count, 32, &paging, logits);
    assert_int_equal(best_of(logits + (size_t)(golden.prompt_count - 1) * vocab_size, vocab_size),
                     golden.greedy[0]);
    free(logits);
    free(golden.logits);
    harness_close(&loaded);
    folder_destroy(&folder);
}

static void special_ids_come_from_both_files(void **state)
{
    const struct setting setting = { .device = "cpu" };
    struct folder folder = folder_create("qwen3", "{\"eos_token_id\": 7, \"bos_token_id\": 3}");
    json_t *generation = json_pack("{s:[i,i]}", "eos_token_id", 5, 6);
    struct loaded loaded = harness_open(folder.path, &setting);
    struct err err;

    (void)state;
    assert_int_equal(model_info(loaded.model)->bos_id, 3);
    assert_int_equal(model_info(loaded.model)->eos_count, 1);
    assert_int_equal(model_info(loaded.model)->eos_ids[0], 7);
    harness_close(&loaded);
    write_json(folder.generation, generation);
    loaded = harness_open(folder.path, &setting);
    assert_int_equal(model_info(loaded.model)->bos_id, 3);
    assert_int_equal(model_info(loaded.model)->eos_count, 2);
    assert_int_equal(model_info(loaded.model)->eos_ids[1], 6);
    harness_close(&loaded);
    json_object_set_new(generation, "eos_token_id", json_string("x"));
    write_json(folder.generation, generation);
    assert_int_equal(harness_try(folder.path, &setting, NULL, &loaded, &err), STATUS_BAD_INPUT);
    assert_non_null(strstr(err.message, "generation_config.json"));
    json_decref(generation);
    folder_destroy(&folder);
}

/* Keeps the lines of a log, one after the other. */
struct kept {
    char text[16384];
    size_t used;
};

static void keep_line(void *user, enum log_level level, const char *line)
{
    struct kept *kept = user;

    (void)level;
    kept->used += (size_t)snprintf(kept->text + kept->used, sizeof(kept->text) - kept->used,
                                   "%s\n", line);
    assert_true(kept->used < sizeof(kept->text));
}

static void what_is_skipped_or_odd_is_logged(void **state)
{
    const struct setting setting = { .device = "sim", .group_size = 1, .num_in_group = 1 };
    struct kept kept = { "", 0 };
    const struct log log = { keep_line, &kept };
    struct loaded loaded;
    struct err err;

    (void)state;
    assert_int_equal(harness_try(GOLDEN_FOLDER "/deepseek_v3", &setting, &log, &loaded, &err),
                     STATUS_OK);
    harness_close(&loaded);
    assert_non_null(strstr(kept.text, "2 tensors of layers 2 and above are skipped"));
    assert_non_null(strstr(kept.text, "in 2 units"));
    assert_non_null(strstr(kept.text, "KV cache 256 tokens"));
    kept.used = 0;
    assert_int_equal(harness_try(GOLDEN_FOLDER "/deepseek_v2_biases", &setting, &log, &loaded,
                                 &err), STATUS_OK);
    harness_close(&loaded);
    assert_non_null(strstr(kept.text, "norm_topk_prob"));
}

static uint64_t smallest_budget(const char *message)
{
    static const char said[] = "the smallest budget that would do is ";
    const char *at = strstr(message, said);

    if (at == NULL)
        fail_msg("\"%s\" names no budget that would do", message);
    return at == NULL ? 0 : strtoull(at + sizeof(said) - 1, NULL, 10);
}

static void check_runs(const char *name, const struct setting *setting)
{
    struct golden golden = golden_read(name);
    struct loaded loaded = harness_open_golden(name, setting);
    const struct model_info *info = model_info(loaded.model);
    const bool any_length = info->kv_window_page_count >= info->kv_window_pages_each;
    const uint32_t room = (any_length || info->kv_page_count < info->kv_window_page_count
                               ? info->kv_page_count
                               : info->kv_window_page_count) * info->kv_page_size;
    const uint32_t count = room < golden.prompt_count ? room : golden.prompt_count;
    float *logits = logits_alloc(loaded.model, count);
    const struct paging paging = { 0, 1 };
    struct device_memory_report memory;

    for (int round = 0; round < 2; round++)
        harness_run(loaded.model, golden.prompt, 0, count, 5, &paging, logits);
    for (size_t i = 0; i < (size_t)count * info->vocab_size; i++)
        assert_true(fabs((double)logits[i] - golden.logits[i]) <
                    (setting->kv_dtype == DTYPE_F32 ? 1e-3 : 0.05));
    device_memory_report(loaded.device, &memory);
    assert_true(memory.peak_bytes <= memory.budget_bytes);
    free(logits);
    free(golden.logits);
    harness_close(&loaded);
}

static void check_budgets(const char *name, const struct setting *base)
{
    char path[256];
    struct setting setting = *base;
    struct loaded loaded;
    struct err err;
    uint64_t smallest;

    golden_path(name, path, sizeof(path));
    setting.budget_bytes = 1;
    assert_int_equal(harness_try(path, &setting, NULL, &loaded, &err), STATUS_NO_MEMORY);
    smallest = smallest_budget(err.message);
    /* of a mixture whose experts are chosen to be units a plan may need some bytes less then */
    if (!setting.automatic || strcmp(name, "deepseek_v3") != 0) {
        setting.budget_bytes = smallest - 1;
        assert_int_equal(harness_try(path, &setting, NULL, &loaded, &err), STATUS_NO_MEMORY);
        assert_int_equal(smallest_budget(err.message), smallest);
    }
    setting.budget_bytes = smallest;
    check_runs(name, &setting);
}

static void the_smallest_budget_that_is_named_works(void **state)
{
    static const struct setting all[] = {
        { .device = "cpu" },
        { .device = "cpu", .kv_auto = true },
        { .device = "sim" },
        { .device = "sim", .kv_auto = true, .page_size = 16 },
        { .device = "sim", .kv_auto = true, .kv_dtype = DTYPE_F16 },
        { .device = "sim", .kv_auto = true, .group_size = 1, .num_in_group = 1 },
        { .device = "sim", .group_size = 2, .num_in_group = 1, .row_count_max = 7 },
        { .device = "sim", .cpu_offload_bytes = 30000, .kv_token_count = 33 },
        { .device = "cpu", .cpu_offload_bytes = 1 << 30, .kv_auto = true },
        { .device = "sim:memory=4MiB", .kv_auto = true },
        { .device = "sim", .kv_auto = true, .automatic = true },
        { .device = "cpu", .kv_auto = true, .automatic = true },
    };

    (void)state;
    for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++) {
        check_budgets("llama_gqa_tied", &all[i]);
        check_budgets("deepseek_v3", &all[i]);
        check_budgets("mistral_window", &all[i]);
        check_budgets("qwen2_window", &all[i]);
    }
}

/* A larger budget has a larger cache, which must not take what weights need. */
static void more_than_the_smallest_budget_works_too(void **state)
{
    (void)state;
    for (uint32_t rows = 1; rows <= 32; rows++) {
        struct setting setting = { .device = "sim", .kv_auto = true, .automatic = true,
                                   .row_count_max = rows, .budget_bytes = 1 };
        struct loaded loaded;
        struct err err;
        uint64_t smallest;

        assert_int_equal(harness_try(GOLDEN_FOLDER "/llama_gqa_tied", &setting, NULL, &loaded,
                                     &err), STATUS_NO_MEMORY);
        smallest = smallest_budget(err.message);
        for (uint64_t more = 0; more <= smallest; more += smallest / 32) {
            setting.budget_bytes = smallest + more;
            loaded = harness_open_golden("llama_gqa_tied", &setting);
            harness_close(&loaded);
        }
    }
}

/* Left to itself the cache takes what the budget leaves, and no page less. */
static void the_cache_takes_what_is_left(void **state)
{
    static const uint64_t budgets[] = { 500000, 700001, 1000000, UINT64_C(1) << 26 };

    (void)state;
    for (size_t i = 0; i < 2 * sizeof(budgets) / sizeof(budgets[0]); i++) {
        const struct setting setting = { .device = "sim", .kv_auto = true,
                                         .kv_dtype = i % 2 == 0 ? DTYPE_F32 : DTYPE_F16,
                                         .budget_bytes = budgets[i / 2] };
        struct loaded loaded = harness_open_golden("qwen3", &setting);
        const struct model_info *info = model_info(loaded.model);
        const uint64_t page_bytes = info->kv_bytes_per_token * info->kv_page_size;
        const uint32_t most = 4 * 512 / info->kv_page_size; /* four sequences' contexts */
        struct device_memory_report memory;

        device_memory_report(loaded.device, &memory);
        assert_true(memory.used_bytes <= setting.budget_bytes);
        assert_true(info->kv_page_count <= most);
        /* a page also costs its column in the page tables, and alignment */
        if (info->kv_page_count < most)
            assert_true(memory.used_bytes + page_bytes + 4096 > setting.budget_bytes);
        harness_close(&loaded);
    }
}

/* Layers with a window get what all sequences can reach at once, and no more, whatever is left. */
static void windows_take_what_they_reach(void **state)
{
    const struct setting setting = { .device = "sim", .kv_auto = true, .row_count_max = 10,
                                     .budget_bytes = UINT64_C(1) << 26 };
    struct device_memory_report full, mixed, windows;
    struct loaded loaded = harness_open_golden("qwen2", &setting);
    const uint64_t layer_bytes = 4 * 512 * model_info(loaded.model)->kv_bytes_per_token / 2;
    uint64_t window_bytes;

    (void)state;
    device_memory_report(loaded.device, &full);
    harness_close(&loaded);
    loaded = harness_open_golden("qwen2_window", &setting);
    device_memory_report(loaded.device, &mixed);
    /* a window of 8 and 10 rows: 17 positions, which touch at most 5 pages of 4 */
    assert_int_equal(model_info(loaded.model)->kv_window_pages_each, 5);
    assert_int_equal(model_info(loaded.model)->kv_window_page_count, 4 * 5);
    assert_int_equal(model_info(loaded.model)->kv_page_count, 4 * 128);
    window_bytes = UINT64_C(4) * 5 * 4 * model_info(loaded.model)->kv_window_bytes_per_token;
    harness_close(&loaded);
    loaded = harness_open_golden("mistral_window", &setting);
    device_memory_report(loaded.device, &windows);
    assert_int_equal(model_info(loaded.model)->kv_window_page_count, 4 * 5);
    harness_close(&loaded);
    /* but for alignment: the page tables of the windows are in the scratch */
    assert_true(mixed.used_by[DEVICE_USE_KV] <=
                full.used_by[DEVICE_USE_KV] - layer_bytes + window_bytes + 1024);
    assert_true(windows.used_by[DEVICE_USE_KV] <= 2 * window_bytes + 2048);
}

/* Runs the golden prompt in chunks of 7 on a device on which something fails; returns whether all
 * went well. Whatever fails, nothing may crash, hang, or stay taken (device_close checks that). */
static bool survives(const char *device)
{
    const struct setting setting = { .device = device, .group_size = 1, .num_in_group = 1 };
    const int32_t ids[7] = { 1, 2, 3, 4, 5, 6, 7 }, positions[7] = { 0, 1, 2, 3, 4, 5, 6 };
    const int32_t sequences[7] = { 0 }, pages[2] = { 0, 1 }, rows[1] = { 6 };
    const struct model_step step = { .row_count = 7, .sequence_count = 1, .page_count_max = 2,
                                     .token_ids = ids, .positions = positions,
                                     .sequences = sequences, .slots = positions, .pages = pages,
                                     .logits_row_count = 1, .logits_rows = rows };
    struct loaded loaded;
    float logits[64];
    struct err err = { STATUS_OK, "" };
    enum status st = harness_try(GOLDEN_FOLDER "/deepseek_v3", &setting, NULL, &loaded, &err);

    if (st == STATUS_OK) {
        for (int i = 0; st == STATUS_OK && i < 2; i++)
            st = model_forward(loaded.model, &step, logits, &err);
        if (st != STATUS_OK) /* the device stays broken: so does the answer */
            assert_int_equal(model_forward(loaded.model, &step, logits, &err), STATUS_DEVICE);
        harness_close(&loaded);
    }
    if (st != STATUS_OK) {
        assert_true(st == STATUS_DEVICE || st == STATUS_NO_MEMORY);
        assert_non_null(strstr(err.message, "on purpose"));
    }
    return st == STATUS_OK;
}

static void any_failure_of_the_device_is_survived(void **state)
{
    static const char *const what[] = { "fail_alloc", "fail_host_alloc", "fail_launch",
                                        "fail_copy" };

    (void)state;
    for (size_t k = 0; k < sizeof(what) / sizeof(what[0]); k++) {
        uint32_t number = 1;
        char device[64];

        do {
            assert_true(number < 1000);
            (void)snprintf(device, sizeof(device), "sim:%s=%u", what[k], number);
            number += number < 8 ? 1 : 7;
        } while (!survives(device));
        assert_true(number > 4); /* the first few did fail */
    }
}

static void a_host_budget_is_kept(void **state)
{
    const struct device_options options = { .thread_count = 1, .host_budget_bytes = 70000 };
    const struct setting setting = { .group_size = 1, .num_in_group = 1 };
    const struct model_options model_options = harness_options(&setting);
    struct loaded loaded = { NULL, NULL, NULL };
    struct err err;

    (void)state;
    assert_int_equal(device_open("sim", &options, &loaded.device, &err), STATUS_OK);
    assert_int_equal(ckpt_open(GOLDEN_FOLDER "/deepseek_v3", &loaded.ckpt, &err), STATUS_OK);
    assert_int_equal(model_create(loaded.device, loaded.ckpt, &model_options, NULL, NULL,
                                  &loaded.model, &err), STATUS_NO_MEMORY);
    assert_non_null(strstr(err.message, "host"));
    harness_close(&loaded);
}

#define RANKS 3
#define SAID_BYTES 1024

/* What a rank whose caller takes so much by itself is told. */
static void rank_is_refused(struct cluster *cluster, void *arg)
{
    char (*said)[SAID_BYTES] = arg;
    const uint32_t rank = cluster_place(cluster)->rank;
    const struct device_options options = { .thread_count = 1, .host_budget_bytes = 70000 };
    const struct setting setting = { .group_size = 1, .num_in_group = 1,
                                     .home = OFFLOAD_HOME_SHM };
    struct model_options model_options = harness_options(&setting);
    struct loaded loaded = { NULL, NULL, NULL };
    struct err err;

    model_options.offload.cluster = cluster;
    model_options.host_reserve_bytes = 1000 * (uint64_t)rank;
    assert_int_equal(device_open("sim", &options, &loaded.device, &err), STATUS_OK);
    assert_int_equal(ckpt_open(GOLDEN_FOLDER "/deepseek_v3", &loaded.ckpt, &err), STATUS_OK);
    assert_int_equal(model_create(loaded.device, loaded.ckpt, &model_options, NULL, NULL,
                                  &loaded.model, &err), STATUS_NO_MEMORY);
    (void)snprintf(said[rank], sizeof(said[rank]), "%s", err.message);
    harness_close(&loaded);
}

/* The first has the segment besides, and whoever is heard first says what it needs. */
static void all_ranks_name_the_largest_need(void **state)
{
    char (*said)[SAID_BYTES] = mmap(NULL, RANKS * SAID_BYTES, PROT_READ | PROT_WRITE,
                                          MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    int ended[RANKS];

    (void)state;
    assert_true(said != MAP_FAILED);
    cluster_testing_run(RANKS, rank_is_refused, said, ended);
    for (uint32_t rank = 0; rank < RANKS; rank++) {
        assert_int_equal(ended[rank], 0);
        assert_non_null(strstr(said[rank], "the smallest --host-memory-budget that would do is "));
        assert_null(strstr(said[rank], "homes take 0 bytes"));
        assert_string_equal(said[rank], said[0]);
    }
    (void)munmap(said, RANKS * SAID_BYTES);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(all_ranks_name_the_largest_need), /* forks: before there are threads */
        cmocka_unit_test(tensors_that_don_t_fit_are_named),
        cmocka_unit_test(inspect_tells_the_same),
        cmocka_unit_test(options_that_don_t_fit_are_refused),
        cmocka_unit_test(a_context_within_the_window_has_none),
        cmocka_unit_test(special_ids_come_from_both_files),
        cmocka_unit_test(what_is_skipped_or_odd_is_logged),
        cmocka_unit_test(the_smallest_budget_that_is_named_works),
        cmocka_unit_test(more_than_the_smallest_budget_works_too),
        cmocka_unit_test(the_cache_takes_what_is_left),
        cmocka_unit_test(windows_take_what_they_reach),
        cmocka_unit_test(any_failure_of_the_device_is_survived),
        cmocka_unit_test(a_host_budget_is_kept),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
