/* model/experts.c - a mixture of experts in the place of a layer's FFN, as all families have it.
 *
 *     r = h Wrouter;  ids, weights = choose top_k of r          (OP_ROUTE)
 *     x += [sigmoid(h g)] shared(h)                             where there are shared experts
 *     x += sum over j of weights[j] * expert[ids[j]](h)         (OP_MOE)
 *
 * Each expert is a gated MLP, and so are all shared ones together. On the device a layer's experts
 * are two stacks, as SGLang's fused MoE lays them, so that one operator reads whichever were
 * chosen:
 *
 *     w13 [experts][2 x width][hidden]      gate, then up, of each expert
 *     w2  [experts][hidden][width]
 *
 * Or each expert is two parameters of its own, w13 [2 x width][hidden] and w2 [hidden][width], and
 * moves by itself when it is chosen (offload.h, "Experts as units"). The shared experts come first
 * because they can be computed while chosen ones are fetched. Meanwhile the next layer's router is
 * asked about the hidden state as it is by then; what it says is what that layer may choose.
 *
 * Checkpoints lay the experts E of a block in one of three ways:
 *
 *     apart    BLOCK.experts.E.GATE.weight [width][hidden], .UP., .DOWN.    as published
 *     stacked  BLOCK.experts.GATE.weight [experts][width][hidden], .UP., .DOWN.
 *     fused    mlp.experts.gate_up_proj [experts][2 x width][hidden], down_proj
 *
 * Stacked is how GGUF files have them, fused what transformers 5 holds in memory, and writes when
 * it is told not to go back to the published format. BLOCK, GATE, UP and DOWN are the family's, but
 * fused comes with the router in mlp.gate.weight, whatever the family calls it, unless the family
 * publishes fused tensors, under names of its own. The parameters here are called mlp. in any
 * case. */
#include <stdio.h>

#include "model/internal.h"

#define NAME_BYTES_MAX 96

/* Published files say "num_experts" or "num_local_experts", by family; to transformers 5 they are
 * one attribute, which it writes by its second name. */
void model__read_softmax_experts(struct config_reader *reader, struct model_config *config,
                                 uint32_t experts_missing, uint32_t top_k_missing)
{
    const uint32_t local = model__read_count_or(reader, "num_local_experts", 0,
                                                CONFIG_EXPERTS_MAX, experts_missing);

    config->expert_count = model__read_count_or(reader, "num_experts", 0, CONFIG_EXPERTS_MAX,
                                                local);
    if (config->expert_count != local && model__read_has(reader, "num_local_experts"))
        model__read_refuse(reader, "\"num_experts\" is %u, but \"num_local_experts\" is %u",
                           config->expert_count, local);
    config->expert_top_k = model__read_count_or(reader, "num_experts_per_tok", 1,
                                                CONFIG_TOP_K_MAX, top_k_missing);
    if (config->expert_count > 0 && config->expert_top_k > config->expert_count)
        model__read_refuse(reader, "\"num_experts_per_tok\" is %u, but there are only %u experts",
                           config->expert_top_k, config->expert_count);
    config->scoring = ROUTE_SOFTMAX;
    config->group_count = config->kept_group_count = 1;
    config->route_scale = 1.0f;
}

void model__read_experts_everywhere(struct config_reader *reader, struct model_config *config,
                                    uint32_t experts_missing, uint32_t top_k_missing,
                                    const char *refusal)
{
    config->expert_ffn_width = config->ffn_width;
    model__read_softmax_experts(reader, config, experts_missing, top_k_missing);
    if (config->expert_count == 0)
        model__read_refuse(reader, "%s", refusal);
    for (uint32_t i = 0; i < config->layer_count && reader->status == STATUS_OK; i++)
        config->has_experts[i] = true;
}

void model__read_routed_experts(struct config_reader *reader, struct model_config *config,
                                const struct routed_missing *missing)
{
    const uint32_t experts_missing =
        model__read_is_null(reader, "n_routed_experts") ? 0 : missing->expert_count;
    const uint32_t shared_missing =
        model__read_is_null(reader, "n_shared_experts") ? 0 : missing->shared_count;
    uint32_t dense_layers, period;

    config->expert_count = model__read_count_or(reader, "n_routed_experts", 0, CONFIG_EXPERTS_MAX,
                                                experts_missing);
    config->expert_ffn_width = model__read_count_or(reader, "moe_intermediate_size", 1,
                                                    CONFIG_FFN_MAX / 64, missing->ffn_width);
    config->shared_ffn_width = config->expert_ffn_width *
        model__read_count_or(reader, "n_shared_experts", 0, 64, shared_missing);
    dense_layers = model__read_count_or(reader, "first_k_dense_replace", 0, UINT32_MAX,
                                        missing->dense_layers);
    period = model__read_count_or(reader, "moe_layer_freq", 1, CONFIG_LAYERS_MAX, 1);
    for (uint32_t i = dense_layers; i < config->layer_count && reader->status == STATUS_OK; i++)
        config->has_experts[i] = config->expert_count > 0 && i % period == 0;
    config->route_scale = (float)model__read_double(reader, "routed_scaling_factor", -1e6, 1e6,
                                                    missing->scale);
    if (config->expert_count > 0 && missing->top_k == 0)
        config->expert_top_k = model__read_count(reader, "num_experts_per_tok", CONFIG_TOP_K_MAX);
    else
        config->expert_top_k = model__read_count_or(reader, "num_experts_per_tok", 1,
                                                    CONFIG_TOP_K_MAX, missing->top_k);
    config->group_count = config->kept_group_count = 1;
}

void model__check_groups(struct config_reader *reader, const struct model_config *config,
                         uint32_t group_size_min)
{
    const uint32_t group_size = config->expert_count / config->group_count;

    if (config->expert_count == 0)
        return;
    if (config->expert_count % config->group_count != 0 || group_size < group_size_min)
        model__read_refuse(reader, "%u experts don't fall into %u equal groups of %u or more",
                           config->expert_count, config->group_count, group_size_min);
    if (config->kept_group_count > config->group_count)
        model__read_refuse(reader, "\"topk_group\" %u is more than \"n_group\" %u",
                           config->kept_group_count, config->group_count);
    if (config->expert_top_k > (uint64_t)config->kept_group_count * group_size)
        model__read_refuse(reader, "\"num_experts_per_tok\" is %u, but only %u groups of %u "
                           "experts are eligible", config->expert_top_k, config->kept_group_count,
                           group_size);
}

void model__read_groups(struct config_reader *reader, struct model_config *config,
                        uint32_t group_missing, uint32_t kept_missing)
{
    config->group_count = model__read_count_or(reader, "n_group", 1, CONFIG_EXPERTS_MAX,
                                               group_missing);
    config->kept_group_count = model__read_count_or(reader, "topk_group", 1, CONFIG_EXPERTS_MAX,
                                                    kept_missing);
    if (config->group_count == 0 || config->kept_group_count == 0)
        model__read_refuse(reader, "choosing experts by groups needs \"n_group\" and "
                           "\"topk_group\"");
}

/* Names of fused checkpoints. */
static const char *fused_router(const struct expert_names *names)
{
    return names->fused_router != NULL ? names->fused_router : "mlp.gate.weight";
}

static const char *fused_in(const struct expert_names *names)
{
    return names->fused_in != NULL ? names->fused_in : "mlp.experts.gate_up_proj";
}

static const char *fused_out(const struct expert_names *names)
{
    return names->fused_out != NULL ? names->fused_out : "mlp.experts.down_proj";
}

enum arrangement { EXPERTS_APART, EXPERTS_STACKED, EXPERTS_FUSED };

static const char *stacked_name(const struct expert_names *names, const char *matrix,
                                char out[NAME_BYTES_MAX])
{
    (void)snprintf(out, NAME_BYTES_MAX, "%s.experts.%s.weight", names->block, matrix);
    return out;
}

static const char *stacked_bias(const struct expert_names *names, const char *matrix,
                                char out[NAME_BYTES_MAX])
{
    (void)snprintf(out, NAME_BYTES_MAX, "%s.experts.%s.bias", names->block, matrix);
    return out;
}

/* The one whose first tensor is there; none: the published one, whose tensor is then said to be
 * missing. */
static enum arrangement find_arrangement(const struct params *params, uint32_t layer,
                               const struct expert_names *names)
{
    char name[NAME_BYTES_MAX];

    if (model__param_source_exists(params, (int32_t)layer,
                                   stacked_name(names, names->gate, name)))
        return EXPERTS_STACKED;
    if (model__param_source_exists(params, (int32_t)layer, fused_in(names)))
        return EXPERTS_FUSED;
    return EXPERTS_APART;
}

static void describe_router(struct params *params, const struct model_config *config,
                            uint32_t layer, const struct expert_names *names)
{
    const struct param_spec spec = { .name = "mlp.gate.weight", .layer = (int32_t)layer,
                                     .role = ROLE_ROUTER, .part = OFFLOAD_PART_FFN, .rank = 2,
                                     .shape = { config->expert_count, config->hidden_size } };

    model__param_begin(params, &spec);
    if (find_arrangement(params, layer, names) == EXPERTS_FUSED)
        model__param_add(params, 2, spec.shape, "%s", fused_router(names));
    else if (names->router != NULL)
        model__param_add(params, 2, spec.shape, "%s", names->router);
    else
        model__param_add(params, 2, spec.shape, "%s.gate.weight", names->block);
    model__param_end(params);
    if (config->route_bias)
        model__describe_norm(params, layer, ROLE_ROUTER_BIAS, OFFLOAD_PART_FFN,
                             names->router_bias, config->expert_count);
    if (config->expert_biases)
        model__describe_norm(params, layer, ROLE_LOGIT_BIAS, OFFLOAD_PART_FFN, names->logit_bias,
                             config->expert_count);
}

static void add_apart(struct params *params, uint32_t expert, const struct expert_names *names,
                      const char *matrix, const uint64_t shape[2])
{
    model__param_add(params, 2, shape, "%s.experts.%u.%s.weight", names->block, expert, matrix);
}

/* A tensor [experts][rows][cols], which fills `rows` of each expert's `rows_of_expert` in the
 * parameter, from first_row on. */
struct stack {
    uint64_t rows, cols, first_row, rows_of_expert;
    bool transposed; /* the tensor is [experts][cols][rows] */
    bool by_turns;   /* it has twice the rows: of these every second, ... */
    uint64_t turn;   /* ... from the first (0) or the second (1) on */
};

/* From the expert `first` on `count` of them. */
static void add_stack(struct params *params, const struct model_config *config, uint32_t first,
                      uint32_t count, const struct stack *stack, const char *name)
{
    const uint64_t step = stack->by_turns ? 2 : 1, rows = step * stack->rows;
    const uint64_t cols = stack->cols, size = rows * cols;
    const bool turned = stack->transposed;
    const struct loader_dim experts = { count, size, stack->rows_of_expert * cols };
    struct loader_part part = {
        .rank = 3, .shape = { config->expert_count, turned ? cols : rows, turned ? rows : cols },
        .src_offset = first * size + stack->turn * (turned ? 1 : cols),
        .dst_offset = stack->first_row * cols,
        .dims = { experts, { stack->rows, turned ? step : step * cols, cols },
                  { cols, turned ? rows : 1, 1 } },
    };

    if (!turned && !stack->by_turns) { /* an expert's rows are one run */
        part.dims[1] = (struct loader_dim){ 1, 0, 0 };
        part.dims[2] = (struct loader_dim){ size, 1, 1 };
    }
    model__param_add_view(params, &part, name);
}

/* Of fused tensors; the blocks of quantised ones lie along rows. */
static bool is_transposed(const struct params *params, uint32_t layer,
                          const struct expert_names *names)
{
    return names->fused_transposed &&
           !model__param_source_is_packed(params, (int32_t)layer, fused_in(names));
}

/* The same of a fused tensor of gate and up. */
static void add_fused_in(struct params *params, const struct model_config *config, uint32_t layer,
                         uint32_t first, uint32_t count, const struct expert_names *names)
{
    const uint64_t width = config->expert_ffn_width;
    struct stack stack = { .rows = 2 * width, .cols = config->hidden_size,
                           .rows_of_expert = 2 * width,
                           .transposed = is_transposed(params, layer, names) };

    if (!names->fused_by_turns) {
        add_stack(params, config, first, count, &stack, fused_in(names));
        return;
    }
    stack.rows = width;
    stack.by_turns = true;
    for (stack.turn = 0; stack.turn < 2; stack.turn++) {
        stack.first_row = stack.turn * width;
        add_stack(params, config, first, count, &stack, fused_in(names));
    }
}

static void describe_w13(struct params *params, const struct model_config *config, uint32_t layer,
                         const struct expert_names *names)
{
    const uint64_t width = config->expert_ffn_width, hidden = config->hidden_size;
    const uint64_t shape[2] = { width, hidden };
    const struct stack gate = { .rows = width, .cols = hidden, .rows_of_expert = 2 * width };
    const struct stack up = { .rows = width, .cols = hidden, .first_row = width,
                              .rows_of_expert = 2 * width };
    const enum arrangement arrangement = find_arrangement(params, layer, names);
    char name[NAME_BYTES_MAX];
    const struct param_spec spec = { .name = "mlp.experts.w13_weight", .layer = (int32_t)layer,
                                     .role = ROLE_W13, .part = OFFLOAD_PART_FFN,
                                     .moves = true, .rank = 3,
                                     .shape = { config->expert_count, 2 * width, hidden } };

    model__param_begin(params, &spec);
    if (arrangement == EXPERTS_STACKED) {
        add_stack(params, config, 0, config->expert_count, &gate,
                  stacked_name(names, names->gate, name));
        add_stack(params, config, 0, config->expert_count, &up,
                  stacked_name(names, names->up, name));
    }
    if (arrangement == EXPERTS_FUSED)
        add_fused_in(params, config, layer, 0, config->expert_count, names);
    for (uint32_t i = 0; arrangement == EXPERTS_APART && i < config->expert_count; i++) {
        add_apart(params, i, names, names->gate, shape);
        add_apart(params, i, names, names->up, shape);
    }
    model__param_end(params);
}

static void describe_w2(struct params *params, const struct model_config *config, uint32_t layer,
                        const struct expert_names *names)
{
    const uint64_t width = config->expert_ffn_width, hidden = config->hidden_size;
    const uint64_t shape[2] = { hidden, width };
    const enum arrangement arrangement = find_arrangement(params, layer, names);
    const struct stack down = { .rows = hidden, .cols = width, .rows_of_expert = hidden,
                                .transposed = arrangement == EXPERTS_FUSED &&
                                              is_transposed(params, layer, names) };
    char name[NAME_BYTES_MAX];
    const struct param_spec spec = { .name = "mlp.experts.w2_weight", .layer = (int32_t)layer,
                                     .role = ROLE_W2, .part = OFFLOAD_PART_FFN,
                                     .moves = true, .rank = 3,
                                     .shape = { config->expert_count, hidden, width } };

    model__param_begin(params, &spec);
    if (arrangement == EXPERTS_STACKED)
        add_stack(params, config, 0, config->expert_count, &down,
                  stacked_name(names, names->down, name));
    if (arrangement == EXPERTS_FUSED)
        add_stack(params, config, 0, config->expert_count, &down, fused_out(names));
    for (uint32_t i = 0; arrangement == EXPERTS_APART && i < config->expert_count; i++)
        add_apart(params, i, names, names->down, shape);
    model__param_end(params);
}

static void describe_unit_w13(struct params *params, const struct model_config *config,
                              const struct param_spec *spec, const struct expert_names *names,
                              enum arrangement arrangement)
{
    const uint64_t width = config->expert_ffn_width, hidden = config->hidden_size;
    const uint64_t shape[2] = { width, hidden };
    const struct stack gate = { .rows = width, .cols = hidden };
    const struct stack up = { .rows = width, .cols = hidden, .first_row = width };
    char name[NAME_BYTES_MAX];

    model__param_begin(params, spec);
    if (arrangement == EXPERTS_STACKED) {
        add_stack(params, config, spec->expert, 1, &gate,
                  stacked_name(names, names->gate, name));
        add_stack(params, config, spec->expert, 1, &up, stacked_name(names, names->up, name));
    } else if (arrangement == EXPERTS_FUSED) {
        add_fused_in(params, config, (uint32_t)spec->layer, spec->expert, 1, names);
    } else {
        add_apart(params, spec->expert, names, names->gate, shape);
        add_apart(params, spec->expert, names, names->up, shape);
    }
    model__param_end(params);
}

static void describe_unit_w2(struct params *params, const struct model_config *config,
                             const struct param_spec *spec, const struct expert_names *names,
                             enum arrangement arrangement)
{
    const struct stack down = { .rows = config->hidden_size, .cols = config->expert_ffn_width,
                                .transposed =
                                    arrangement == EXPERTS_FUSED &&
                                    is_transposed(params, (uint32_t)spec->layer, names) };
    const uint64_t shape[2] = { config->hidden_size, config->expert_ffn_width };
    char name[NAME_BYTES_MAX];

    model__param_begin(params, spec);
    if (arrangement == EXPERTS_STACKED)
        add_stack(params, config, spec->expert, 1, &down,
                  stacked_name(names, names->down, name));
    else if (arrangement == EXPERTS_FUSED)
        add_stack(params, config, spec->expert, 1, &down, fused_out(names));
    else
        add_apart(params, spec->expert, names, names->down, shape);
    model__param_end(params);
}

static void describe_units(struct params *params, const struct model_config *config,
                           uint32_t layer, const struct expert_names *names)
{
    const uint64_t width = config->expert_ffn_width, hidden = config->hidden_size;
    const enum arrangement arrangement = find_arrangement(params, layer, names);
    char name[NAME_BYTES_MAX];
    struct param_spec spec = { .name = name, .layer = (int32_t)layer, .part = OFFLOAD_PART_FFN,
                               .moves = true, .is_expert = true, .rank = 2 };

    for (spec.expert = 0; spec.expert < config->expert_count; spec.expert++) {
        (void)snprintf(name, sizeof(name), "mlp.experts.%u.w13_weight", spec.expert);
        spec.role = ROLE_W13;
        spec.shape[0] = 2 * width;
        spec.shape[1] = hidden;
        describe_unit_w13(params, config, &spec, names, arrangement);
        (void)snprintf(name, sizeof(name), "mlp.experts.%u.w2_weight", spec.expert);
        spec.role = ROLE_W2;
        spec.shape[0] = hidden;
        spec.shape[1] = width;
        describe_unit_w2(params, config, &spec, names, arrangement);
    }
}

/* One row, which GGUF files have as a vector. */
static void describe_shared_gate(struct params *params, const struct model_config *config,
                                 uint32_t layer, const char *name)
{
    const struct param_spec spec = { .name = name, .layer = (int32_t)layer,
                                     .role = ROLE_SHARED_GATE, .part = OFFLOAD_PART_FFN,
                                     .rank = 1, .shape = { config->hidden_size } };
    const uint64_t shape[2] = { 1, config->hidden_size };

    model__param_begin(params, &spec);
    if (model__param_source_rank(params, (int32_t)layer, name) == 1)
        model__param_add(params, 1, spec.shape, "%s", name);
    else
        model__param_add(params, 2, shape, "%s", name);
    model__param_end(params);
}

/* Those of all of a layer's experts, which stay together even where each expert is a unit. */
static void describe_biases(struct params *params, const struct model_config *config,
                            uint32_t layer, const struct expert_names *names)
{
    const uint64_t experts = config->expert_count, width = config->expert_ffn_width;
    const uint64_t out_shape[2] = { experts, config->hidden_size };
    const bool stacked = find_arrangement(params, layer, names) == EXPERTS_STACKED;
    char name[NAME_BYTES_MAX];
    struct param_spec spec = { .name = "mlp.experts.w13_bias", .layer = (int32_t)layer,
                               .role = ROLE_W13_BIAS, .part = OFFLOAD_PART_FFN, .rank = 1,
                               .shape = { experts * 2 * width } };
    struct loader_part half = {
        .rank = 2, .shape = { experts, 2 * width },
        .dims = { { 1, 0, 0 }, { experts, 2 * width, 2 * width },
                  { width, names->fused_by_turns ? 2 : 1, 1 } },
    };

    if (stacked) { /* gate and up are tensors of their own */
        half.shape[1] = half.dims[1].src_stride = width;
        half.dims[2].src_stride = 1;
    }
    model__param_begin(params, &spec);
    model__param_add_view(params, &half, stacked ? stacked_bias(names, names->gate, name)
                                                 : names->in_bias);
    half.src_offset = stacked ? 0 : names->fused_by_turns ? 1 : width;
    half.dst_offset = width;
    model__param_add_view(params, &half, stacked ? stacked_bias(names, names->up, name)
                                                 : names->in_bias);
    model__param_end(params);
    spec.name = "mlp.experts.w2_bias";
    spec.role = ROLE_W2_BIAS;
    spec.shape[0] = experts * config->hidden_size;
    model__param_begin(params, &spec);
    model__param_add(params, 2, out_shape, "%s",
                     stacked ? stacked_bias(names, names->down, name) : names->out_bias);
    model__param_end(params);
}

/* The orders of experts that are apart, as GPTQ's are: of each gate and up, or of each down, one.
 * Where one expert has one all must. */
static void describe_orders(struct params *params, const struct model_config *config,
                            uint32_t layer, const struct expert_names *names, bool of_down)
{
    const uint64_t width[1] = { of_down ? config->expert_ffn_width : config->hidden_size };
    const char *matrix = of_down ? names->down : names->gate;
    const struct param_spec spec = {
        .name = of_down ? "mlp.experts.w2_order" : "mlp.experts.w13_order",
        .layer = (int32_t)layer, .role = of_down ? ROLE_W2_ORDER : ROLE_W13_ORDER,
        .part = OFFLOAD_PART_FFN, .rank = 1, .shape = { config->expert_count * width[0] },
    };
    char name[NAME_BYTES_MAX], other[NAME_BYTES_MAX];
    bool any = false;

    for (uint32_t i = 0; !any && i < config->expert_count; i++) {
        (void)snprintf(name, sizeof(name), "%s.experts.%u.%s.weight", names->block, i, matrix);
        any = model__param_has_order(params, (int32_t)layer, name);
    }
    if (!any)
        return;
    model__param_begin(params, &spec);
    for (uint32_t i = 0; i < config->expert_count; i++) {
        model__param_add(params, 1, width, "%s.experts.%u.%s.order", names->block, i, matrix);
        (void)snprintf(name, sizeof(name), "%s.experts.%u.%s.weight", names->block, i, matrix);
        (void)snprintf(other, sizeof(other), "%s.experts.%u.%s.weight", names->block, i,
                       names->up);
        if (!of_down)
            model__param_share_order(params, (int32_t)layer, other, name);
    }
    model__param_end(params);
}

static void describe_experts(struct params *params, const struct model_config *config,
                             uint32_t layer, const struct expert_names *names)
{
    describe_router(params, config, layer, names);
    if (config->expert_units) {
        describe_units(params, config, layer, names);
    } else {
        describe_w13(params, config, layer, names);
        describe_w2(params, config, layer, names);
    }
    if (config->expert_biases)
        describe_biases(params, config, layer, names);
    if (find_arrangement(params, layer, names) == EXPERTS_APART) {
        describe_orders(params, config, layer, names, false);
        describe_orders(params, config, layer, names, true);
    }
    if (config->shared_ffn_width > 0 && names->shared != NULL)
        model__describe_mlp(params, config, layer, names->shared, config->shared_ffn_width);
    if (config->shared_gate)
        describe_shared_gate(params, config, layer, names->shared_gate);
}

void model__describe_ffn(struct params *params, const struct model_config *config, uint32_t layer,
                         const struct expert_names *names)
{
    model__describe_norm(params, layer, ROLE_POST_NORM, OFFLOAD_PART_FFN,
                         "post_attention_layernorm.weight", config->hidden_size);
    if (model__config_layer_has_experts(config, layer))
        describe_experts(params, config, layer, names);
    else
        model__describe_mlp(params, config, layer, names->block, config->ffn_width);
}

void model__dense_describe_layer(struct params *params, const struct model_config *config,
                                 uint32_t layer)
{
    static const struct expert_names names = { .block = "mlp" };

    model__gqa_describe(params, config, layer);
    model__describe_ffn(params, config, layer, &names);
}

/* The widest gated MLP that every row goes through: 0 where all layers have experts only. */
static uint64_t mlp_width(const struct model_config *config)
{
    uint64_t width = config->shared_ffn_width;

    for (uint32_t i = 0; i < config->layer_count; i++)
        if (!config->has_experts[i] && config->ffn_width > width)
            width = config->ffn_width;
    return width;
}

void model__slice_ffn(struct slicer *slicer, const struct model_config *config,
                      uint64_t row_count, struct model_buffers *buffers)
{
    const uint64_t top_k = config->expert_top_k, experts = config->expert_count;

    model__slice_mlp(slicer, row_count, mlp_width(config), buffers);
    if (experts == 0)
        return;
    buffers->route_logits = model__slice(slicer, row_count * experts * sizeof(float));
    buffers->route_weights = model__slice(slicer, row_count * top_k * sizeof(float));
    buffers->route_ids = model__slice(slicer, row_count * top_k * sizeof(int32_t));
    buffers->shared_weights = model__slice(slicer, row_count * sizeof(float));
    buffers->moe = model__slice(slicer, op_moe_scratch_bytes(row_count, top_k, experts,
                                                             config->hidden_size,
                                                             config->expert_ffn_width));
    if (!config->expert_units)
        return;
    row_count = row_count < MODEL_GUESS_ROWS_MAX ? row_count : MODEL_GUESS_ROWS_MAX;
    buffers->guess_normed = model__slice(slicer, row_count * config->hidden_size * sizeof(float));
    buffers->guess_logits = model__slice(slicer, row_count * experts * sizeof(float));
    buffers->guess_weights = model__slice(slicer, row_count * top_k * sizeof(float));
    buffers->guess_ids = model__slice(slicer, row_count * top_k * sizeof(int32_t));
}

/* Where a router reads and writes. */
struct routing {
    const float *normed;
    float *logits, *weights;
    int32_t *ids;
};

static void route(struct model_pass *pass, uint32_t layer, const struct routing *routing)
{
    const struct model_config *config = pass->config;
    const struct tensor *bias = model__pass_param(pass, (int32_t)layer, ROLE_ROUTER_BIAS);
    const struct pass_linear logits = {
        .out = routing->logits, .x = routing->normed, .layer = (int32_t)layer,
        .weight = ROLE_ROUTER, .bias = ROLE_LOGIT_BIAS,
    };
    const struct op choice = { .kind = OP_ROUTE, .route = {
        .ids = routing->ids, .weights = routing->weights, .logits = routing->logits,
        .correction_bias = bias != NULL ? bias->data : NULL,
        .row_count = pass->row_count, .expert_count = config->expert_count,
        .top_k = config->expert_top_k, .group_count = config->group_count,
        .kept_group_count = config->kept_group_count, .scoring = config->scoring,
        .groups = config->groups, .normalise = config->route_normalise,
        .scale = config->route_scale * config->residual_scale,
    } };

    model__pass_linear(pass, &logits);
    model__pass_launch(pass, &choice);
}

/* OP_MOE but for the experts. */
static struct op mixture(struct model_pass *pass, uint32_t layer, const struct tensor *w13,
                         const struct tensor *w2)
{
    const struct model_config *config = pass->config;
    const struct model_buffers *buffers = pass->buffers;
    const struct tensor *w13_bias = model__pass_param(pass, (int32_t)layer, ROLE_W13_BIAS);
    const struct tensor *w2_bias = model__pass_param(pass, (int32_t)layer, ROLE_W2_BIAS);
    const struct tensor *w13_order = model__pass_param(pass, (int32_t)layer, ROLE_W13_ORDER);
    const struct tensor *w2_order = model__pass_param(pass, (int32_t)layer, ROLE_W2_ORDER);

    return (struct op){ .kind = OP_MOE, .moe = {
        .out = buffers->x, .x = config->weighs_inputs ? buffers->addition : buffers->normed,
        .ids = buffers->route_ids,
        .weights = config->weighs_inputs ? buffers->ones : buffers->route_weights,
        .weight_dtype = w13->dtype,
        .weight_layout = w13->layout, .down_dtype = w2->dtype, .down_layout = w2->layout,
        .scratch = buffers->moe,
        .row_count = pass->row_count, .top_k = config->expert_top_k,
        .expert_count = config->expert_count, .width = config->hidden_size,
        .ffn_width = config->expert_ffn_width, .out_row_stride = config->hidden_size,
        .x_row_stride = config->hidden_size, .gate = config->gate,
        .w13_bias = w13_bias != NULL ? w13_bias->data : NULL,
        .w2_bias = w2_bias != NULL ? w2_bias->data : NULL,
        .w13_order = w13_order != NULL ? w13_order->data : NULL,
        .w2_order = w2_order != NULL ? w2_order->data : NULL,
    } };
}

/* Where an expert's weight counts before it: the rows times their one weight. */
static void weigh_inputs(struct model_pass *pass)
{
    const struct model_config *config = pass->config;
    const struct op op = { .kind = OP_SCALE, .scale = {
        .out = pass->buffers->addition, .x = pass->buffers->normed,
        .row_factors = pass->buffers->route_weights, .row_count = pass->row_count,
        .width = config->hidden_size, .out_row_stride = config->hidden_size,
        .x_row_stride = config->hidden_size, .factor = 1.0f,
    } };

    model__pass_launch(pass, &op);
}

static void mix_stacks(struct model_pass *pass, uint32_t layer)
{
    const struct tensor *w13 = model__pass_param(pass, (int32_t)layer, ROLE_W13);
    const struct tensor *w2 = model__pass_param(pass, (int32_t)layer, ROLE_W2);
    struct op op = mixture(pass, layer, w13, w2);

    op.moe.w13 = w13->data;
    op.moe.w2 = w2->data;
    model__pass_launch(pass, &op);
}

/* A layer's experts in turns, as they are there. */
static void mix_units(struct model_pass *pass, uint32_t layer)
{
    struct offload *offload = pass->model->offload;
    struct op op = mixture(pass, layer, model__pass_param(pass, (int32_t)layer, ROLE_W13),
                           model__pass_param(pass, (int32_t)layer, ROLE_W2));
    struct offload_experts_turn turn = { .is_last = false };

    while (pass->status == STATUS_OK && !turn.is_last) {
        pass->status = offload_experts_next(offload, &turn, pass->err);
        if (pass->status != STATUS_OK)
            return;
        op.moe.experts = turn.experts;
        op.moe.expert_list_count = turn.expert_count;
        op.moe.continued = !turn.is_first;
        op.moe.unfinished = !turn.is_last;
        model__pass_launch(pass, &op);
        if (pass->status == STATUS_OK)
            pass->status = offload_experts_done(offload, pass->err);
    }
}

static bool is_there(const struct model_pass *pass, uint32_t layer, enum model_role role)
{
    const struct tensor *tensor = model__pass_param(pass, (int32_t)layer, role);

    return tensor == NULL || tensor->data != NULL;
}

/* What the next layer's router says about the hidden state as it is. */
static void guess(struct model_pass *pass, uint32_t layer)
{
    struct offload *offload = pass->model->offload;
    const struct model_buffers *buffers = pass->buffers;
    const struct routing routing = { buffers->guess_normed, buffers->guess_logits,
                                     buffers->guess_weights, buffers->guess_ids };
    const struct pass_norm norm = {
        .out = buffers->guess_normed, .x = buffers->x, .row_stride = pass->config->hidden_size,
        .group_count = 1, .epsilon = pass->config->norm_epsilon, .layer = (int32_t)layer,
        .weight = ROLE_POST_NORM,
    };

    if (pass->status != STATUS_OK || !offload_experts_wants_guess(offload, layer) ||
        !is_there(pass, layer, ROLE_POST_NORM) || !is_there(pass, layer, ROLE_ROUTER) ||
        !is_there(pass, layer, ROLE_ROUTER_BIAS) || !is_there(pass, layer, ROLE_LOGIT_BIAS))
        return;
    model__pass_norm(pass, &norm);
    route(pass, layer, &routing);
    if (pass->status == STATUS_OK)
        pass->status = offload_experts_guess(offload, layer, buffers->guess_ids, pass->err);
}

/* The experts that every row goes through. */
static void pass_shared(struct model_pass *pass, uint32_t layer)
{
    const struct model_config *config = pass->config;
    const struct model_buffers *buffers = pass->buffers;
    const struct tensor *gate = model__pass_param(pass, (int32_t)layer, ROLE_SHARED_GATE);
    struct op weights = { .kind = OP_MATMUL, .matmul = {
        .out = buffers->shared_weights, .x = buffers->normed, .weight_dtype = DTYPE_F32,
        .row_count = pass->row_count, .n_count = 1, .k_count = config->hidden_size,
        .batch_count = 1, .out_row_stride = 1, .x_row_stride = config->hidden_size,
        .exact = true,
    } };

    if (gate != NULL) {
        weights.matmul.weight = gate->data;
        model__pass_launch(pass, &weights);
    }
    model__pass_mlp(pass, layer, gate != NULL ? buffers->shared_weights : NULL);
}

void model__pass_ffn(struct model_pass *pass, uint32_t layer)
{
    const struct model_buffers *buffers = pass->buffers;
    const struct routing routing = { buffers->normed, buffers->route_logits,
                                     buffers->route_weights, buffers->route_ids };
    const bool units = pass->config->expert_units;

    if (!model__config_layer_has_experts(pass->config, layer)) {
        model__pass_mlp(pass, layer, NULL);
        return;
    }
    route(pass, layer, &routing);
    if (units && pass->status == STATUS_OK)
        pass->status = offload_experts_begin(pass->model->offload, layer, buffers->route_ids,
                                             pass->err);
    if (pass->config->shared_ffn_width > 0)
        pass_shared(pass, layer);
    if (pass->config->weighs_inputs)
        weigh_inputs(pass);
    if (!units) {
        mix_stacks(pass, layer);
        return;
    }
    guess(pass, layer + 1);
    mix_units(pass, layer);
}
