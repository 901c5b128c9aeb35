/* offload/plan/plan_test.c - what a plan must never do.
 *
 * Method: invented parameters and every small combination of settings, no model, no device. What is
 * checked are properties, reckoned here in another way than in plan.c: which layers a group
 * chooses, when V1 stops, that every parameter has exactly one place. For each refusal the setting
 * that its sentence recommends is tried, and has to work. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "base/size.h"
#include "offload/internal.h"

#define LAYERS_MAX 13
#define PARAMS_MAX (LAYERS_MAX * 6 + 3)

/* An invented model: an embedding, layers of two attention and up to four FFN parameters (fewer in
 * the first layer, as where it is dense), a last norm. */
struct invented {
    struct offload offload;
    struct offload__param params[PARAMS_MAX];
    char names[PARAMS_MAX][64];
    bool moves[PARAMS_MAX];
};

static uint64_t next_random(uint64_t *state)
{
    *state = *state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return *state >> 33;
}

static void add_param(struct invented *model, const char *name, int32_t layer,
                      enum offload_part part, bool default_selected, uint64_t size_bytes)
{
    const size_t i = model->offload.param_count++;

    assert_true(i < PARAMS_MAX);
    (void)snprintf(model->names[i], sizeof(model->names[i]), "%s", name);
    model->params[i] = (struct offload__param){
        .name = model->names[i],
        .size_bytes = size_bytes,
        .layer = layer,
        .part = part,
        .default_selected = default_selected,
        .unit = OFFLOAD_NO_UNIT,
    };
}

static void invent(struct invented *model, uint32_t layer_count, uint64_t seed)
{
    static const struct {
        const char *name;
        enum offload_part part;
        bool default_selected;
    } kinds[] = {
        { "input_layernorm.weight", OFFLOAD_PART_ATTENTION, false },
        { "self_attn.qkv_proj.weight", OFFLOAD_PART_ATTENTION, false },
        { "mlp.gate.weight", OFFLOAD_PART_FFN, false },
        { "mlp.experts.w13_weight", OFFLOAD_PART_FFN, true },
        { "mlp.experts.w2_weight", OFFLOAD_PART_FFN, true },
        { "post_attention_layernorm.weight", OFFLOAD_PART_FFN, false },
    };
    uint64_t state = seed;
    char name[64];

    memset(model, 0, sizeof(*model));
    model->offload.params = model->params;
    model->offload.layer_count = layer_count;
    add_param(model, "model.embed_tokens.weight", OFFLOAD_NO_LAYER, OFFLOAD_PART_ATTENTION, false,
              1 + next_random(&state) % 100000);
    for (uint32_t layer = 0; layer < layer_count; layer++) {
        for (size_t k = 0; k < sizeof(kinds) / sizeof(kinds[0]); k++) {
            if (layer == 0 && k == 2)
                continue;
            (void)snprintf(name, sizeof(name), "model.layers.%u.%s", layer, kinds[k].name);
            add_param(model, name, (int32_t)layer, kinds[k].part, kinds[k].default_selected,
                      1 + next_random(&state) % 100000);
        }
    }
    add_param(model, "model.norm.weight", OFFLOAD_NO_LAYER, OFFLOAD_PART_ATTENTION, false, 4096);
    add_param(model, "lm_head.weight", OFFLOAD_NO_LAYER, OFFLOAD_PART_ATTENTION, false, 77777);
}

static void forget_units(struct invented *model)
{
    struct offload *offload = &model->offload;

    for (size_t i = 0; i < offload->unit_count; i++)
        free(offload->units[i].params);
    free(offload->units);
    free(offload->unit_of);
    offload->units = NULL;
    offload->unit_of = NULL;
    offload->unit_count = 0;
    memset(&offload->sizes, 0, sizeof(offload->sizes));
}

static enum status plan_it(struct invented *model, const struct offload_options *options,
                           struct err *err)
{
    enum status st;

    forget_units(model);
    model->offload.options = *options;
    st = offload__plan(model->params, model->offload.param_count, model->offload.layer_count,
                       options, NULL, model->moves, err);
    if (st == STATUS_OK)
        st = offload__plan_units(&model->offload, model->moves, err);
    return st;
}

static struct offload_options v2(int64_t group_size, int64_t num_in_group, int64_t prefetch_step)
{
    struct offload_options options;

    offload_options_init(&options);
    options.group_size = group_size;
    options.num_in_group = num_in_group;
    options.prefetch_step = prefetch_step;
    return options;
}

static uint64_t rounded(uint64_t bytes)
{
    return (bytes + DEVICE_ALIGNMENT - 1) / DEVICE_ALIGNMENT * DEVICE_ALIGNMENT;
}

/* Every parameter has one place, aligned and alone; units come in the order of a pass. */
static void check_records(const struct invented *model)
{
    const struct offload *offload = &model->offload;
    uint64_t resident_bytes = 0, moving_bytes = 0, largest_bytes = 0;

    for (size_t u = 0; u < offload->unit_count; u++) {
        const struct offload__unit *unit = &offload->units[u];
        uint64_t bytes = 0;

        assert_true(unit->param_count > 0);
        for (size_t i = 0; i < unit->param_count; i++) {
            const struct offload__param *param = &offload->params[unit->params[i]];

            assert_int_equal(param->unit, u);
            assert_int_equal(param->layer, unit->layer);
            assert_int_equal(param->part, unit->part);
            assert_int_equal(param->offset_bytes, bytes);
            bytes += rounded(param->size_bytes);
        }
        assert_int_equal(unit->size_bytes, bytes);
        moving_bytes += bytes;
        largest_bytes = bytes > largest_bytes ? bytes : largest_bytes;
        if (u > 0)
            assert_true(unit->layer > unit[-1].layer ||
                        (unit->layer == unit[-1].layer && unit->part > unit[-1].part));
    }
    for (size_t i = 0; i < offload->param_count; i++) {
        const struct offload__param *param = &offload->params[i];

        assert_int_equal(param->unit != OFFLOAD_NO_UNIT, model->moves[i]);
        if (model->moves[i])
            continue;
        assert_int_equal(param->offset_bytes, resident_bytes);
        resident_bytes += rounded(param->size_bytes);
    }
    assert_int_equal(offload->sizes.resident_bytes, resident_bytes);
    assert_int_equal(offload->sizes.moving_bytes, moving_bytes);
    assert_int_equal(offload->sizes.unit_count, offload->unit_count);
    assert_int_equal(offload->sizes.slot_bytes, offload->in_place ? 0 : largest_bytes);
}

static void v2_moves_the_last_layers_of_each_group(void **state)
{
    struct invented *model = malloc(sizeof(*model));
    struct err err;

    (void)state;
    for (uint32_t layers = 1; layers <= LAYERS_MAX; layers++) {
        for (int64_t group = 1; group <= layers; group++) {
            for (int64_t in_group = 1; in_group <= group; in_group++) {
                const struct offload_options options = v2(group, in_group, 1);

                invent(model, layers, layers * 100 + (uint64_t)group);
                assert_int_equal(plan_it(model, &options, &err), STATUS_OK);
                /* Reckoned by walking the groups: skip group - in_group layers, take in_group. */
                for (int64_t layer = 0, place = 0; layer < layers; layer++) {
                    const bool taken = place >= group - in_group;

                    for (size_t i = 0; i < model->offload.param_count; i++) {
                        if (model->params[i].layer == layer)
                            assert_int_equal(model->moves[i],
                                             taken && model->params[i].default_selected);
                    }
                    place = place + 1 == group ? 0 : place + 1;
                }
                for (size_t i = 0; i < model->offload.param_count; i++) {
                    if (model->params[i].layer == OFFLOAD_NO_LAYER)
                        assert_false(model->moves[i]);
                }
                check_records(model);
                assert_int_equal(model->offload.sizes.slot_count, 2);
                forget_units(model);
            }
        }
    }
    free(model);
}

static void v1_takes_parameters_in_order_until_enough_is_gone(void **state)
{
    struct invented *model = malloc(sizeof(*model));
    struct offload_options options;
    uint64_t all_bytes = 0;
    struct err err;

    (void)state;
    invent(model, 5, 42);
    for (size_t i = 0; i < model->offload.param_count; i++)
        all_bytes += model->params[i].layer >= 0 ? model->params[i].size_bytes : 0;
    offload_options_init(&options);
    for (uint64_t asked = 1; asked < all_bytes + 200000; asked += 7919) {
        uint64_t gone_bytes = 0;

        options.cpu_offload_bytes = asked;
        assert_int_equal(plan_it(model, &options, &err), STATUS_OK);
        for (size_t i = 0; i < model->offload.param_count; i++) {
            /* moved exactly when what went before it is not yet enough */
            if (model->params[i].layer == OFFLOAD_NO_LAYER) {
                assert_false(model->moves[i]);
                continue;
            }
            assert_int_equal(model->moves[i], gone_bytes < asked);
            if (model->moves[i])
                gone_bytes += model->params[i].size_bytes;
        }
        assert_true(gone_bytes >= asked || gone_bytes == all_bytes);
        check_records(model);
    }
    forget_units(model);
    free(model);
}

static void without_options_everything_stays(void **state)
{
    struct invented *model = malloc(sizeof(*model));
    struct offload_options options;
    struct err err;

    (void)state;
    invent(model, 3, 1);
    offload_options_init(&options);
    for (int64_t off = -1; off <= 0; off++) {
        options.group_size = off;
        assert_int_equal(plan_it(model, &options, &err), STATUS_OK);
        assert_int_equal(model->offload.unit_count, 0);
        assert_int_equal(model->offload.sizes.slot_count, 0);
        check_records(model);
    }
    forget_units(model);
    free(model);
}

static void a_device_in_host_memory_needs_slots_for_meta_only(void **state)
{
    struct invented *model = malloc(sizeof(*model));
    struct offload_options options = v2(2, 1, 1);
    struct err err;

    (void)state;
    invent(model, 6, 3);
    model->offload.in_place = true;
    assert_int_equal(plan_it(model, &options, &err), STATUS_OK);
    assert_int_equal(model->offload.sizes.slot_count, 0);
    check_records(model);
    options.home = OFFLOAD_HOME_META;
    assert_int_equal(plan_it(model, &options, &err), STATUS_OK);
    assert_int_equal(model->offload.sizes.slot_count, 2);
    assert_true(model->offload.sizes.slot_bytes > 0);
    forget_units(model);
    free(model);
}

/* Settings that cannot be, what the sentence has to say, and the setting it recommends. */
static void bad_combinations_are_refused_with_what_works(void **state)
{
    static const struct {
        struct {
            uint64_t v1_bytes;
            int64_t group, in_group, prefetch, slots;
            enum offload_home home;
        } bad, good;
        const char *says[3];
    } cases[] = {
        { { 1, 4, 1, 1, 0, OFFLOAD_HOME_HOST }, { 0, 4, 1, 1, 0, OFFLOAD_HOME_HOST },
          { "--cpu-offload-gb", "--offload-group-size", "leave one of them out" } },
        { { 0, 4, 5, 1, 0, OFFLOAD_HOME_HOST }, { 0, 4, 4, 1, 0, OFFLOAD_HOME_HOST },
          { "--offload-num-in-group 5", "--offload-group-size 4", "at most 4" } },
        { { 0, 4, 0, 1, 0, OFFLOAD_HOME_HOST }, { 0, 4, 1, 1, 0, OFFLOAD_HOME_HOST },
          { "--offload-num-in-group is 0", "smallest is 1", "" } },
        { { 0, -7, 1, 1, 0, OFFLOAD_HOME_HOST }, { 0, 1, 1, 1, 0, OFFLOAD_HOME_HOST },
          { "--offload-group-size is -7", "smallest is 1", "" } },
        { { 0, 2, 1, 0, 0, OFFLOAD_HOME_HOST }, { 0, 2, 1, 1, 0, OFFLOAD_HOME_HOST },
          { "--offload-prefetch-step is 0", "smallest is 1", "" } },
        { { 5, 0, 1, -3, 0, OFFLOAD_HOME_HOST }, { 5, 0, 1, 1, 0, OFFLOAD_HOME_HOST },
          { "--offload-prefetch-step is -3", "smallest is 1", "" } },
        /* 8 layers, groups of 2: 4 units move */
        { { 0, 2, 1, 5, 0, OFFLOAD_HOME_HOST }, { 0, 2, 1, 4, 0, OFFLOAD_HOME_HOST },
          { "--offload-prefetch-step 5", "4 units", "at most 4" } },
        { { 0, 2, 1, INT64_MAX, 0, OFFLOAD_HOME_META }, { 0, 2, 1, 4, 0, OFFLOAD_HOME_META },
          { "9223372036854775807", "at most 4", "" } },
        { { 0, 9, 1, 1, 0, OFFLOAD_HOME_HOST }, { 0, 8, 1, 1, 0, OFFLOAD_HOME_HOST },
          { "--offload-group-size 9", "8 layers", "works is 8" } },
        { { 0, 11, 3, 1, 0, OFFLOAD_HOME_HOST }, { 0, 10, 3, 1, 0, OFFLOAD_HOME_HOST },
          { "--offload-group-size 11", "8 layers", "works is 10" } },
        { { 0, INT64_MAX, INT64_MAX - 8, 1, 0, OFFLOAD_HOME_HOST },
          { 0, INT64_MAX, INT64_MAX - 7, 1, 0, OFFLOAD_HOME_HOST },
          { "--offload-group-size 9223372036854775807", "works is", "9223372036854775806" } },
        { { 0, 2, 1, 3, 3, OFFLOAD_HOME_HOST }, { 0, 2, 1, 3, 4, OFFLOAD_HOME_HOST },
          { "--offload-slots 3", "--offload-prefetch-step 3", "4 works" } },
        { { 0, 2, 1, 1, -1, OFFLOAD_HOME_HOST }, { 0, 2, 1, 1, 0, OFFLOAD_HOME_HOST },
          { "--offload-slots is -1", "0 chooses", "" } },
        { { 9, 0, 1, 1, 0, OFFLOAD_HOME_META }, { 9, 0, 1, 1, 0, OFFLOAD_HOME_HOST },
          { "--cpu-offload-gb", "--offload-mode must be cpu", "meta" } },
    };
    struct invented *model = malloc(sizeof(*model));
    struct err err;

    (void)state;
    invent(model, 8, 5);
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct offload_options options = v2(cases[i].bad.group, cases[i].bad.in_group,
                                            cases[i].bad.prefetch);

        options.cpu_offload_bytes = cases[i].bad.v1_bytes;
        options.slot_count = cases[i].bad.slots;
        options.home = cases[i].bad.home;
        assert_int_equal(plan_it(model, &options, &err), STATUS_BAD_INPUT);
        for (size_t s = 0; s < 3; s++) {
            if (strstr(err.message, cases[i].says[s]) == NULL)
                fail_msg("case %zu: '%s' lacks '%s'", i, err.message, cases[i].says[s]);
        }
        options = v2(cases[i].good.group, cases[i].good.in_group, cases[i].good.prefetch);
        options.cpu_offload_bytes = cases[i].good.v1_bytes;
        options.slot_count = cases[i].good.slots;
        options.home = cases[i].good.home;
        if (plan_it(model, &options, &err) != STATUS_OK)
            fail_msg("case %zu: what was recommended fails: %s", i, err.message);
        check_records(model);
    }
    forget_units(model);
    free(model);
}

static void globs_select_among_the_chosen_layers(void **state)
{
    static const struct {
        const char *globs;
        const char *parts[3]; /* names that contain one of these, in layers 1, 3, 5, move */
    } cases[] = {
        { "*", { "layers" } },
        { "*.mlp.gate.weight", { "mlp.gate." } },
        { "*.w13_weight,*.w2_weight", { "w13_weight", "w2_weight" } },
        { "*layernorm*,model.layers.3.self_attn.*", { "layernorm", "layers.3.self_attn" } },
        { "model.layers.[0-9].mlp.experts.w?_weight", { "w2_weight" } },
    };
    struct invented *model = malloc(sizeof(*model));
    struct err err;

    (void)state;
    invent(model, 6, 7);
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct offload_options options = v2(2, 1, 1);

        options.params_glob = cases[i].globs;
        assert_int_equal(plan_it(model, &options, &err), STATUS_OK);
        for (size_t p = 0; p < model->offload.param_count; p++) {
            bool named = false;

            for (size_t k = 0; k < 3 && cases[i].parts[k] != NULL; k++)
                named = named || strstr(model->params[p].name, cases[i].parts[k]) != NULL;
            assert_int_equal(model->moves[p],
                             named && model->params[p].layer >= 0 &&
                                 model->params[p].layer % 2 == 1);
        }
        check_records(model);
    }
    forget_units(model);
    free(model);
}

static void globs_that_select_nothing_are_refused(void **state)
{
    static const struct {
        const char *globs;
        const char *says;
    } cases[] = {
        { "*.mlp.expert.w13_weigth",
          "nearest name there is model.layers.1.mlp.experts.w13_weight" },
        { "w2_weight", "'*w2_weight*' would match model.layers.1.mlp.experts.w2_weight" },
        { "*,*.qkv_porj.*", "nearest name there is model.layers.1.self_attn.qkv_proj.weight" },
        { "*.embed_tokens.*", "outside the layers" },
        { "lm_head.*", "stays on the device" },
        { "model.layers.2.*", "moves nothing of layer 2" },
        { "", "empty glob" },
        { "*.w2_weight,", "empty glob" },
        { ",*.w2_weight", "empty glob" },
        { "[", "'[' matches no" },
    };
    struct invented *model = malloc(sizeof(*model));
    struct offload_options options = v2(2, 1, 1);
    char longest[2000];
    struct err err;

    (void)state;
    invent(model, 6, 7);
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        options.params_glob = cases[i].globs;
        assert_int_equal(plan_it(model, &options, &err), STATUS_BAD_INPUT);
        if (strstr(err.message, cases[i].says) == NULL ||
            strstr(err.message, "--offload-params") == NULL)
            fail_msg("'%s' lacks '%s'", err.message, cases[i].says);
    }
    memset(longest, 'x', sizeof(longest));
    longest[sizeof(longest) - 1] = '\0';
    options.params_glob = longest;
    assert_int_equal(plan_it(model, &options, &err), STATUS_BAD_INPUT);
    longest[512] = '\0'; /* the longest that is compared */
    assert_int_equal(plan_it(model, &options, &err), STATUS_BAD_INPUT);
    assert_non_null(strstr(err.message, "nearest"));
    /* A glob without the grouping would do nothing. */
    options = v2(0, 1, 1);
    options.params_glob = "*";
    assert_int_equal(plan_it(model, &options, &err), STATUS_BAD_INPUT);
    assert_non_null(strstr(err.message, "add --offload-group-size"));
    options.cpu_offload_bytes = 1000;
    assert_int_equal(plan_it(model, &options, &err), STATUS_BAD_INPUT);
    forget_units(model);
    free(model);
}

static void models_with_nothing_to_move_are_refused(void **state)
{
    struct invented *model = malloc(sizeof(*model));
    struct offload_options options = v2(2, 1, 1);
    struct err err;

    (void)state;
    invent(model, 4, 9);
    for (size_t i = 0; i < model->offload.param_count; i++)
        model->params[i].default_selected = model->params[i].layer == 2;
    assert_int_equal(plan_it(model, &options, &err), STATUS_BAD_INPUT);
    assert_non_null(strstr(err.message, "layer 2 has"));
    for (size_t i = 0; i < model->offload.param_count; i++)
        model->params[i].default_selected = false;
    assert_int_equal(plan_it(model, &options, &err), STATUS_BAD_INPUT);
    assert_non_null(strstr(err.message, "--offload-params"));
    model->offload.param_count = 1; /* the embedding alone */
    assert_int_equal(plan_it(model, &options, &err), STATUS_BAD_INPUT);
    options = v2(0, 1, 1);
    options.cpu_offload_bytes = 1;
    assert_int_equal(plan_it(model, &options, &err), STATUS_BAD_INPUT);
    forget_units(model);
    free(model);
}

static void sizes_that_overflow_are_refused(void **state)
{
    struct invented *model = malloc(sizeof(*model));
    struct offload_options options = v2(1, 1, 1);
    struct err err;

    (void)state;
    for (size_t which = 0; which < 6; which++) { /* in the block, in a record, over units */
        invent(model, 3, 9);
        model->params[which].size_bytes = UINT64_MAX - which * 100;
        assert_int_equal(plan_it(model, &options, &err), STATUS_BAD_INPUT);
        assert_non_null(strstr(err.message, "overflow"));
        forget_units(model);
    }
    invent(model, 3, 9);
    model->params[3].size_bytes = UINT64_C(1) << 62;
    options.slot_count = 60000; /* each fits, the pool does not */
    assert_int_equal(plan_it(model, &options, &err), STATUS_BAD_INPUT);
    assert_non_null(strstr(err.message, "slots"));
    forget_units(model);
    free(model);
}

static void modes_are_named_as_users_type_them(void **state)
{
    enum offload_home home = OFFLOAD_HOME_COUNT;
    struct err err;

    (void)state;
    assert_int_equal(offload_mode_parse("cpu", &home, &err), STATUS_OK);
    assert_int_equal(home, OFFLOAD_HOME_HOST);
    assert_int_equal(offload_mode_parse("meta", &home, &err), STATUS_OK);
    assert_int_equal(home, OFFLOAD_HOME_META);
    assert_int_equal(offload_mode_parse("gpu", &home, &err), STATUS_BAD_INPUT);
    assert_non_null(strstr(err.message, "cpu, "));
    assert_non_null(strstr(err.message, "meta"));
    assert_int_equal(home, OFFLOAD_HOME_META); /* written on success only */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(v2_moves_the_last_layers_of_each_group),
        cmocka_unit_test(v1_takes_parameters_in_order_until_enough_is_gone),
        cmocka_unit_test(without_options_everything_stays),
        cmocka_unit_test(a_device_in_host_memory_needs_slots_for_meta_only),
        cmocka_unit_test(bad_combinations_are_refused_with_what_works),
        cmocka_unit_test(globs_select_among_the_chosen_layers),
        cmocka_unit_test(globs_that_select_nothing_are_refused),
        cmocka_unit_test(models_with_nothing_to_move_are_refused),
        cmocka_unit_test(sizes_that_overflow_are_refused),
        cmocka_unit_test(modes_are_named_as_users_type_them),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
