/* model/config_test.c - reading config.json: what published models say, and what nobody should.
 *
 * Real configurations (tests/corpus/model_config) must be read, with the rotary frequencies that
 * transformers computes for them (tests/golden/models/rope.json, made by
 * tools/make_model_goldens.py). Bad ones are made by changing one field of a good one, and each
 * must be refused with a sentence that names the field and the number. */
#include <dirent.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "base/json.h"
#include "model/config.h"
#include "model/internal.h"

#define CORPUS "tests/corpus/model_config"

static json_t *read_json(const char *path)
{
    json_t *json = NULL;
    struct err err;

    if (json_read_file(path, 1 << 20, &json, &err) != STATUS_OK)
        fail_msg("%s", err.message);
    return json;
}

static json_t *read_corpus(const char *name)
{
    char path[256];

    (void)snprintf(path, sizeof(path), CORPUS "/%s", name);
    return read_json(path);
}

static struct model_config config_of(const char *name)
{
    struct model_config config;
    struct err err;
    json_t *json = read_corpus(name);

    if (model__config_read(json, name, &config, &err) != STATUS_OK)
        fail_msg("%s", err.message);
    json_decref(json);
    return config;
}

static void published_configurations_are_read(void **state)
{
    struct model_config config = config_of("deepseek-v3.json");

    (void)state;
    assert_string_equal(config.architecture, "DeepseekV3ForCausalLM");
    assert_int_equal(config.layer_count, 61);
    assert_int_equal(config.expert_count, 256);
    assert_int_equal(config.group_count, 8);
    assert_int_equal(config.kept_group_count, 4);
    assert_int_equal(config.q_lora_rank, 1536);
    assert_int_equal(config.predict_layer_count, 1);
    assert_true(config.route_bias && config.route_normalise && config.rope_interleaved);
    assert_false(model__config_layer_has_experts(&config, 2));
    assert_true(model__config_layer_has_experts(&config, 3));
    config = config_of("deepseek-v2-lite.json");
    assert_int_equal(config.q_lora_rank, 0);
    assert_int_equal(config.group_count, 1);
    assert_false(config.route_bias || config.route_normalise);
    config = config_of("llama-3.1-8b.json");
    assert_int_equal(config.kv_head_count, 8);
    assert_int_equal(config.head_dim, 128);
    assert_int_equal(config.bos_id, 128000);
    assert_int_equal(config.eos_count, 3);
    assert_int_equal(config.eos_ids[2], 128009);
    config = config_of("llama-2-7b.json");
    assert_int_equal(config.kv_head_count, 32);
    config = config_of("mistral-7b-v0.1.json");
    assert_int_equal(config.sliding_window, 4096);
    assert_int_equal(model__window_layer_count(&config), config.layer_count);
    config = config_of("mistral-7b-v0.3.json");
    assert_int_equal(config.sliding_window, 0);
    config = config_of("qwen2.5-7b-yarn.json");
    assert_true(config.qkv_bias);
    assert_false(config.o_bias);
    assert_int_equal(config.sliding_window, 0);
    config = config_of("qwen3-30b-a3b.json");
    assert_int_equal(config.expert_count, 128);
    assert_int_equal(config.expert_top_k, 8);
    assert_int_equal(config.expert_ffn_width, 768);
    assert_int_equal(config.shared_ffn_width, 0);
    assert_true(config.qk_norm && config.route_normalise && !config.route_bias);
    assert_true(model__config_layer_has_experts(&config, 0));
    config = config_of("mixtral-8x7b.json");
    assert_int_equal(config.expert_count, 8);
    assert_int_equal(config.expert_top_k, 2);
    assert_int_equal(config.expert_ffn_width, 14336);
    assert_true(config.route_normalise);
    assert_int_equal(config.sliding_window, 0);
    config = config_of("mixtral-sparse.json"); /* what the class has for what is missing */
    assert_int_equal(config.kv_head_count, 8);
    assert_int_equal(config.expert_count, 8);
    assert_int_equal(config.expert_top_k, 2);
    assert_true(config.norm_epsilon == 1e-5f);
    config = config_of("qwen3-0.6b.json");
    assert_true(config.qk_norm && config.tied_embeddings);
    assert_int_equal(config.head_dim, 128);
}

/* transformers' pow and ours may differ in the last bit, and two such errors meet in YaRN's
 * blend. */
static void check_close(const char *what, size_t index, double got, double wanted)
{
    if (!(fabs(got - wanted) <= 4e-7 * fabs(wanted)))
        fail_msg("%s, number %zu: %.9g, transformers has %.9g", what, index, got, wanted);
}

static void rope_is_that_of_transformers(void **state)
{
    json_t *golden = read_json("tests/golden/models/rope.json");
    const char *name;
    json_t *rope;
    size_t checked = 0;

    (void)state;
    json_object_foreach(golden, name, rope) {
        const struct model_config config = config_of(name);
        const json_t *frequencies = json_object_get(rope, "frequencies");

        assert_int_equal(config.rope_pair_count, json_array_size(frequencies));
        for (size_t i = 0; i < config.rope_pair_count; i++)
            check_close(name, i, config.rope_frequencies[i],
                        json_real_value(json_array_get(frequencies, i)));
        check_close(name, 1000, config.rope_scale,
                    json_real_value(json_object_get(rope, "factor")));
        check_close(name, 1001, config.attention_scale,
                    json_real_value(json_object_get(rope, "softmax_scale")));
        checked++;
    }
    assert_true(checked >= 10);
    json_decref(golden);
}

/* transformers 5.23: dense when listed, or when its number, from one, is no multiple of the
 * step. */
static void layers_with_experts_are_those_of_transformers(void **state)
{
    static const struct {
        const char *edit;
        const char *layers; /* of six: 'e' experts, 'd' dense */
    } cases[] = {
        { "{}", "eeeeee" },
        { "{\"decoder_sparse_step\": 2}", "dedede" },
        { "{\"decoder_sparse_step\": 3, \"mlp_only_layers\": null}", "ddedde" },
        { "{\"decoder_sparse_step\": 4294967295}", "dddddd" },
        { "{\"mlp_only_layers\": [0, 5, 6, -1, 2, 2]}", "dedeed" },
        { "{\"mlp_only_layers\": [3], \"decoder_sparse_step\": 2}", "deddde" },
        { "{\"num_experts\": 0}", "dddddd" },
    };

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        json_t *json = read_corpus("qwen3-30b-a3b.json");
        json_t *edit = json_loads(cases[i].edit, 0, NULL);
        struct model_config config;
        struct err err;

        assert_int_equal(json_object_update(json, edit), 0);
        json_object_set_new(json, "num_hidden_layers", json_integer(6));
        if (model__config_read(json, "x", &config, &err) != STATUS_OK)
            fail_msg("%s: %s", cases[i].edit, err.message);
        for (uint32_t layer = 0; layer < 6; layer++)
            if (model__config_layer_has_experts(&config, layer) !=
                (cases[i].layers[layer] == 'e'))
                fail_msg("%s: layer %u is wrong", cases[i].edit, layer);
        json_decref(edit);
        json_decref(json);
    }
}

struct change {
    const char *base;  /* in the corpus */
    const char *edit;  /* an object whose fields replace those of the base */
    const char *said;  /* in the message; NULL: it is read */
};

static const struct change changes[] = {
    { "llama-2-7b.json", "{\"num_hidden_layers\": 0}", "\"num_hidden_layers\" is 0" },
    { "llama-2-7b.json", "{\"num_hidden_layers\": -1}", "\"num_hidden_layers\" is -1" },
    { "llama-2-7b.json", "{\"num_hidden_layers\": 1025}", "from 1 to 1024" },
    { "llama-2-7b.json", "{\"num_hidden_layers\": 9223372036854775807}", "from 1 to 1024" },
    { "llama-2-7b.json", "{\"num_hidden_layers\": 1e300}", "an integer is wanted" },
    { "llama-2-7b.json", "{\"num_hidden_layers\": \"32\"}", "is a string" },
    { "llama-2-7b.json", "{\"num_hidden_layers\": null}", "\"num_hidden_layers\" is missing" },
    { "llama-2-7b.json", "{\"vocab_size\": 4294967297}", "\"vocab_size\" is 4294967297" },
    { "llama-2-7b.json", "{\"hidden_size\": 4097}", "4097 is not a multiple" },
    { "llama-2-7b.json", "{\"hidden_size\": 1073741824}", "\"hidden_size\" is 1073741824" },
    { "llama-2-7b.json", "{\"num_attention_heads\": 33}", "not a multiple" },
    { "llama-2-7b.json", "{\"num_key_value_heads\": 5}", "multiple of \"num_key_value_heads\" 5" },
    { "llama-2-7b.json", "{\"num_key_value_heads\": null}", NULL },
    { "llama-2-7b.json", "{\"head_dim\": 127}", "must be even" },
    { "llama-2-7b.json", "{\"head_dim\": 64}", NULL },
    { "llama-2-7b.json", "{\"intermediate_size\": 2.5}", "\"intermediate_size\" is a fraction" },
    { "llama-2-7b.json", "{\"intermediate_size\": 11008.0}", NULL },
    { "llama-2-7b.json", "{\"max_position_embeddings\": 16777217}", "from 1 to 16777216" },
    { "llama-2-7b.json", "{\"rms_norm_eps\": -1}", "\"rms_norm_eps\" is -1" },
    { "llama-2-7b.json", "{\"tie_word_embeddings\": 1}", "true or false" },
    { "llama-2-7b.json", "{\"hidden_act\": \"gelu\"}", "\"hidden_act\" is \"gelu\"" },
    { "llama-2-7b.json", "{\"architectures\": [\"GPT2LMHeadModel\"]}", "GPT2LMHeadModel" },
    { "llama-2-7b.json", "{\"architectures\": [7]}", "holds an integer" },
    { "llama-2-7b.json", "{\"architectures\": null}", NULL },
    { "llama-2-7b.json", "{\"architectures\": [], \"model_type\": \"gpt2\"}", "\"gpt2\"" },
    { "llama-2-7b.json", "{\"architectures\": [], \"model_type\": null}", "neither" },
    { "llama-2-7b.json", "{\"eos_token_id\": \"</s>\"}", "\"eos_token_id\" holds a string" },
    { "llama-2-7b.json", "{\"eos_token_id\": [1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1]}", "17 ids" },
    { "llama-2-7b.json", "{\"eos_token_id\": [99999999, -7]}", NULL },
    { "llama-2-7b.json", "{\"bos_token_id\": 5000000000}", "\"bos_token_id\" is 5000000000" },
    { "llama-2-7b.json", "{\"layer_types\": [\"full_attention\"]}", "1 entries" },
    { "llama-2-7b.json", "{\"rope_theta\": 0}", "\"rope_theta\" is 0" },
    { "llama-2-7b.json", "{\"rope_theta\": 1e400}", "not valid" },
    { "llama-2-7b.json", "{\"partial_rotary_factor\": 0.5}", "\"partial_rotary_factor\" is 0.5" },
    { "llama-2-7b.json", "{\"rope_scaling\": 3}", "\"rope_scaling\" is an integer" },
    { "llama-2-7b.json", "{\"rope_scaling\": {\"type\": \"longrope\"}}", "\"short_factor\"" },
    { "llama-2-7b.json",
      "{\"rope_scaling\": {\"type\": \"su\", \"short_factor\": [1, 2], \"long_factor\": []}}",
      "\"short_factor\" has 2 factors" },
    { "llama-2-7b.json", "{\"rope_scaling\": {\"type\": \"ntk\"}}", "\"ntk\" is not built" },
    { "llama-2-7b.json", "{\"rope_scaling\": {\"type\": \"linear\"}}", "needs a \"factor\"" },
    { "llama-2-7b.json", "{\"rope_scaling\": {\"type\": \"linear\", \"factor\": 0}}",
      "\"factor\" is 0" },
    { "llama-2-7b.json", "{\"rope_scaling\": {\"type\": \"dynamic\", \"factor\": 2}}", NULL },
    { "llama-2-7b.json", "{\"rope_scaling\": {\"type\": \"llama3\", \"factor\": 8}}", "llama3" },
    { "llama-2-7b.json", "{\"rope_scaling\": {\"type\": \"llama3\", \"factor\": 8, "
      "\"low_freq_factor\": 4, \"high_freq_factor\": 1}}", "found 4 and 1" },
    { "llama-2-7b.json", "{\"rope_scaling\": {\"type\": \"yarn\", \"factor\": 4, "
      "\"original_max_position_embeddings\": 0}}", "\"original_max_position_embeddings\" is 0" },
    { "llama-2-7b.json", "{\"rope_theta\": 1, \"rope_scaling\": {\"type\": \"yarn\", "
      "\"factor\": 4}}", "theta above 1" },
    { "llama-2-7b.json", "{\"rope_scaling\": {\"type\": \"yarn\", \"factor\": 4, "
      "\"mscale\": 1e300}}",      "\"mscale\" is 1e+300" },
    { "llama-2-7b.json", "{\"rope_parameters\": {\"full_attention\": {}}}", "differ by layer" },
    { "mistral-7b-v0.1.json", "{\"num_key_value_heads\": 7}", "multiple" },
    { "mistral-7b-v0.1.json", "{\"sliding_window\": 0}", "\"sliding_window\" is 0" },
    { "qwen3-0.6b.json", "{\"num_hidden_layers\": 1, \"layer_types\": [\"chunked_attention\"]}",
      "chunked_attention" },
    { "qwen3-0.6b.json", "{\"use_sliding_window\": \"no\"}", "\"use_sliding_window\"" },
    { "deepseek-v3.json", "{\"num_key_value_heads\": 8}", "\"num_key_value_heads\" is 8" },
    { "deepseek-v3.json", "{\"qk_rope_head_dim\": 63}", "must be even" },
    { "deepseek-v3.json", "{\"n_group\": 7}", "256 experts" },
    { "deepseek-v3.json", "{\"n_group\": 256}", "groups of 2" },
    { "deepseek-v3.json", "{\"topk_group\": 9}", "more than \"n_group\" 8" },
    { "deepseek-v3.json", "{\"num_experts_per_tok\": 129}", "\"num_experts_per_tok\" is 129" },
    { "deepseek-v3.json", "{\"num_experts_per_tok\": 128, \"topk_group\": 3}", "3 groups of 32" },
    { "deepseek-v3.json", "{\"n_routed_experts\": 100000}", "\"n_routed_experts\" is 100000" },
    { "deepseek-v3.json", "{\"n_routed_experts\": null}", NULL },
    { "deepseek-v3.json", "{\"scoring_func\": \"softmax\"}", "softmax" },
    { "deepseek-v3.json", "{\"topk_method\": \"greedy\"}", "greedy" },
    { "deepseek-v3.json", "{\"moe_layer_freq\": 0}", "\"moe_layer_freq\" is 0" },
    { "deepseek-v3.json", "{\"kv_lora_rank\": 1000000}", "\"kv_lora_rank\" is 1000000" },
    { "deepseek-v3.json", "{\"q_lora_rank\": 0}", "\"q_lora_rank\" is 0" },
    { "deepseek-v2.json", "{\"topk_method\": \"noaux_tc\"}", "noaux_tc" },
    { "deepseek-v2.json", "{\"n_group\": null}", "needs \"n_group\"" },
    { "deepseek-v2.json", "{\"num_experts_per_tok\": null}", "\"num_experts_per_tok\" is missing" },
    { "deepseek-v2.json", "{\"norm_topk_prob\": true}", NULL },
    { "qwen3-30b-a3b.json", "{\"num_experts\": 1025}", "\"num_experts\" is 1025" },
    { "qwen3-30b-a3b.json", "{\"num_experts\": null, \"num_local_experts\": 1025}",
      "\"num_local_experts\" is 1025, it must be from 0 to 1024" },
    { "qwen3-30b-a3b.json", "{\"num_local_experts\": 64}", "\"num_local_experts\" is 64" },
    { "qwen3-30b-a3b.json", "{\"num_local_experts\": 128}", NULL },
    { "qwen3-30b-a3b.json", "{\"num_experts\": null}", NULL },
    { "qwen3-30b-a3b.json", "{\"num_experts_per_tok\": 129}", "from 1 to 128" },
    { "qwen3-30b-a3b.json", "{\"num_experts\": 6}", "only 6 experts" },
    { "qwen3-30b-a3b.json", "{\"decoder_sparse_step\": 0}", "\"decoder_sparse_step\" is 0" },
    { "qwen3-30b-a3b.json", "{\"mlp_only_layers\": [1, \"2\"]}", "holds a string" },
    { "qwen3-30b-a3b.json", "{\"mlp_only_layers\": 3}", "\"mlp_only_layers\" is an integer" },
    { "qwen3-30b-a3b.json", "{\"moe_intermediate_size\": 0}", "\"moe_intermediate_size\" is 0" },
    { "qwen3-30b-a3b.json", "{\"norm_topk_prob\": 1}", "\"norm_topk_prob\"" },
    { "mixtral-8x7b.json", "{\"num_local_experts\": 0}", "has at least one" },
    { "mixtral-8x7b.json", "{\"num_local_experts\": 5000}", "\"num_local_experts\" is 5000" },
    { "mixtral-8x7b.json", "{\"num_experts_per_tok\": 9}", "only 8 experts" },
    { "mixtral-8x7b.json", "{\"sliding_window\": 4096}", NULL },
};

static void one_wrong_field_is_named(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof(changes) / sizeof(changes[0]); i++) {
        json_t *json = read_corpus(changes[i].base);
        struct model_config config;
        json_t *edit = NULL;
        struct err err;
        enum status st = json_read(changes[i].edit, strlen(changes[i].edit), "x not valid", &edit,
                                   &err);

        if (st == STATUS_OK) {
            assert_int_equal(json_object_update(json, edit), 0);
            st = model__config_read(json, changes[i].base, &config, &err);
        }
        if (changes[i].said == NULL && st != STATUS_OK)
            fail_msg("%s: %s", changes[i].edit, err.message);
        if (changes[i].said != NULL && st != STATUS_BAD_INPUT)
            fail_msg("%s in %s was not refused", changes[i].edit, changes[i].base);
        if (changes[i].said != NULL && strstr(err.message, changes[i].said) == NULL)
            fail_msg("%s: \"%s\" does not say \"%s\"", changes[i].edit, err.message,
                     changes[i].said);
        json_decref(edit);
        json_decref(json);
    }
}

/* Every required field, left out. */
static void missing_fields_are_named(void **state)
{
    static const char *const keys[] = { "num_hidden_layers", "vocab_size", "hidden_size",
                                        "num_attention_heads", "intermediate_size",
                                        "max_position_embeddings" };

    (void)state;
    for (size_t i = 0; i < sizeof(keys) / sizeof(keys[0]); i++) {
        json_t *json = read_corpus("deepseek-v2.json");
        struct model_config config;
        struct err err;

        assert_int_equal(json_object_del(json, keys[i]), 0);
        assert_int_equal(model__config_read(json, "x", &config, &err), STATUS_BAD_INPUT);
        assert_non_null(strstr(err.message, keys[i]));
        json_decref(json);
    }
}

static void not_an_object_is_refused(void **state)
{
    json_t *json = json_array();
    struct model_config config;
    struct err err;

    (void)state;
    assert_int_equal(model__config_read(json, "x", &config, &err), STATUS_BAD_INPUT);
    assert_int_equal(model__config_read_generation(json, "x", &config, &err), STATUS_BAD_INPUT);
    json_decref(json);
}

static void a_quirk_is_told(void **state)
{
    json_t *json = read_corpus("deepseek-v2.json");
    struct model_config config;
    struct err err;

    (void)state;
    json_object_set_new(json, "norm_topk_prob", json_true());
    assert_int_equal(model__config_read(json, "x", &config, &err), STATUS_OK);
    assert_non_null(strstr(config.warning, "norm_topk_prob"));
    assert_false(config.route_normalise);
    json_decref(json);
}

static void the_names_are_those_of_the_table(void **state)
{
    const char *const *names = model_architectures();
    size_t count = 0;

    (void)state;
    for (; names[count] != NULL; count++) {
        const struct model_arch *arch = model__arch_find(names[count], NULL);

        assert_non_null(arch);
        assert_string_equal(arch->architecture, names[count]);
        assert_ptr_equal(model__arch_find(NULL, arch->model_type), arch);
    }
    assert_int_equal(count, 22);
    assert_null(model__arch_find("llama", NULL));
    assert_null(model__arch_find(NULL, NULL));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(published_configurations_are_read),
        cmocka_unit_test(rope_is_that_of_transformers),
        cmocka_unit_test(layers_with_experts_are_those_of_transformers),
        cmocka_unit_test(one_wrong_field_is_named),
        cmocka_unit_test(missing_fields_are_named),
        cmocka_unit_test(not_an_object_is_refused),
        cmocka_unit_test(a_quirk_is_told),
        cmocka_unit_test(the_names_are_those_of_the_table),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
