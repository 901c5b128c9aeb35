/* cli/options_table.c - every option there is: one row is all that parsing, checking and --help
 * know of it. SGLang's names and defaults stand wherever SGLang has the option. */
#include "cli/options_table.h"

#define BIT(command) (1u << CLI_COMMAND_##command)
#define ON_GENERATE BIT(GENERATE)
#define ON_CHAT BIT(CHAT)
#define ON_SERVE BIT(SERVE)
#define ON_BENCH BIT(BENCH)
#define ON_LOGITS BIT(LOGITS)
#define ON_TOKENIZE BIT(TOKENIZE)
#define ON_INSPECT BIT(INSPECT)
#define ON_PLAN BIT(PLAN)
#define ON_QUANTIZE BIT(QUANTIZE)
#define ON_SELFTEST BIT(SELFTEST)
/* Those that run a model. */
#define ON_RUN (ON_GENERATE | ON_CHAT | ON_SERVE | ON_BENCH | ON_LOGITS | ON_PLAN)
#define ON_PROMPT (ON_GENERATE | ON_LOGITS)
#define ON_TEXT (ON_GENERATE | ON_CHAT)
#define ON_ALL ((1u << CLI_COMMAND_COUNT) - 1)
/* quantize takes the model's own tokenizer, and nothing runs there. */
#define ON_OTHERS (ON_ALL & ~ON_QUANTIZE)

#define AT(field) .offset = offsetof(struct cli_options, field)
#define INT_MAX_EXACT 9007199254740992.0 /* 2^53: every integer up to it is a double */

#define GROUP_MODEL "Model"
#define GROUP_PROMPT "Prompt"
#define GROUP_SAMPLING "Sampling"
#define GROUP_SERVER "Server"
#define GROUP_BENCH "Benchmark"
#define GROUP_OUTPUT "Output"
#define GROUP_DEVICE "Device"
#define GROUP_OFFLOAD "Offloading"
#define GROUP_ENGINE "Batching and cache"

const struct cli_option cli_option_table[] = {
    /* What is served. */
    { .name = "model", .alias = "model-path", .kind = CLI_OPTION_TEXT, .value_name = "PATH",
      .help = "a Hugging Face folder: config.json and *.safetensors",
      .group = GROUP_MODEL, .commands = ON_ALL, AT(model) },
    { .name = "tokenizer-path", .kind = CLI_OPTION_TEXT, .value_name = "PATH",
      .help = "the folder with tokenizer.json, when it is not the model's",
      .group = GROUP_MODEL, .commands = ON_OTHERS, AT(tokenizer_path) },
    { .name = "chat-template", .kind = CLI_OPTION_TEXT, .value_name = "FILE",
      .help = "a Jinja template for conversations; default: the model's own",
      .group = GROUP_MODEL, .commands = ON_SERVE | ON_CHAT, AT(chat_template) },
    { .name = "system", .kind = CLI_OPTION_TEXT, .value_name = "TEXT",
      .help = "the system message that a conversation begins with", .group = GROUP_PROMPT,
      .commands = ON_CHAT, AT(system) },
    { .name = "skip-tokenizer-init", .kind = CLI_OPTION_FLAG,
      .help = "opens no tokenizer: prompts and answers are token ids",
      .group = GROUP_MODEL, .commands = ON_RUN, AT(skip_tokenizer_init) },
    { .name = "dtype", .kind = CLI_OPTION_CHOICE, .value_name = "TYPE",
      .choices = "auto|half|float16|bfloat16|float|float32", .fallback = "auto",
      .help = "type of the weights in memory; auto keeps the checkpoint's",
      .group = GROUP_MODEL, .commands = ON_RUN, AT(dtype) },
    { .name = "context-length", .kind = CLI_OPTION_INT, .value_name = "N", .min = 1,
      .max = 0x7fffffff, .help = "longest prompt and answer together; default: the model's own",
      .group = GROUP_MODEL, .commands = ON_RUN, AT(context_length) },

    /* The prompt. */
    { .name = "prompt", .kind = CLI_OPTION_TEXT, .value_name = "TEXT", .help = "the prompt",
      .group = GROUP_PROMPT, .commands = ON_PROMPT, AT(prompt) },
    { .name = "prompt-file", .kind = CLI_OPTION_TEXT, .value_name = "FILE",
      .help = "a file with the prompt; - is standard input",
      .group = GROUP_PROMPT, .commands = ON_PROMPT, AT(prompt_file) },
    { .name = "input-ids", .kind = CLI_OPTION_IDS, .value_name = "1,2,3",
      .help = "the prompt as token ids", .group = GROUP_PROMPT, .commands = ON_PROMPT,
      AT(input_ids) },
    { .name = "no-special", .kind = CLI_OPTION_FLAG,
      .help = "adds no special tokens (such as BOS) to the text's ids",
      .group = GROUP_PROMPT, .commands = ON_PROMPT | ON_TOKENIZE, AT(no_special) },
    { .name = "decode", .kind = CLI_OPTION_IDS, .value_name = "1,2,3",
      .help = "turns ids into text instead of reading text from standard input",
      .group = GROUP_PROMPT, .commands = ON_TOKENIZE, AT(decode) },
    { .name = "skip-special", .kind = CLI_OPTION_FLAG,
      .help = "with --decode: leaves special tokens out of the text",
      .group = GROUP_PROMPT, .commands = ON_TOKENIZE, AT(skip_special) },

    /* Sampling. */
    { .name = "max-new-tokens", .kind = CLI_OPTION_INT, .value_name = "N", .min = 0,
      .max = 0x7fffffff, .help = "longest answer; default: 128, in a chat as long as fits",
      .group = GROUP_SAMPLING, .commands = ON_TEXT, AT(max_new_tokens) },
    { .name = "temperature", .kind = CLI_OPTION_REAL, .value_name = "T", .min = 0, .max = 1e6,
      .fallback = "1.0", .help = "0 takes the likeliest token always", .group = GROUP_SAMPLING,
      .commands = ON_TEXT, AT(temperature) },
    { .name = "top-k", .kind = CLI_OPTION_INT, .value_name = "K", .min = -1, .max = 0x7fffffff,
      .fallback = "-1", .help = "only the K likeliest tokens; -1: all", .group = GROUP_SAMPLING,
      .commands = ON_TEXT, AT(top_k) },
    { .name = "top-p", .kind = CLI_OPTION_REAL, .value_name = "P", .min = 0, .max = 1,
      .above_min = true, .fallback = "1.0",
      .help = "only the likeliest tokens whose probabilities sum to P", .group = GROUP_SAMPLING,
      .commands = ON_TEXT, AT(top_p) },
    { .name = "min-p", .kind = CLI_OPTION_REAL, .value_name = "P", .min = 0, .max = 1,
      .fallback = "0.0", .help = "only tokens at least P times as likely as the likeliest",
      .group = GROUP_SAMPLING, .commands = ON_TEXT, AT(min_p) },
    { .name = "frequency-penalty", .kind = CLI_OPTION_REAL, .value_name = "X", .min = -2, .max = 2,
      .fallback = "0.0", .help = "taken off a token's logit for each time it was generated",
      .group = GROUP_SAMPLING, .commands = ON_TEXT, AT(frequency_penalty) },
    { .name = "presence-penalty", .kind = CLI_OPTION_REAL, .value_name = "X", .min = -2, .max = 2,
      .fallback = "0.0", .help = "taken off the logit of a token that was generated",
      .group = GROUP_SAMPLING, .commands = ON_TEXT, AT(presence_penalty) },
    { .name = "repetition-penalty", .kind = CLI_OPTION_REAL, .value_name = "X", .min = 0, .max = 2,
      .above_min = true, .fallback = "1.0",
      .help = "divides the positive logits of tokens seen, multiplies the negative",
      .group = GROUP_SAMPLING, .commands = ON_TEXT, AT(repetition_penalty) },
    { .name = "seed", .kind = CLI_OPTION_INT, .value_name = "N", .min = 0, .max = INT_MAX_EXACT,
      .help = "makes sampling repeatable; default: --random-seed", .group = GROUP_SAMPLING,
      .commands = ON_TEXT, AT(seed) },
    { .name = "stop", .kind = CLI_OPTION_TEXTS, .value_name = "TEXT",
      .help = "ends the answer before this text; may be given several times",
      .group = GROUP_SAMPLING, .commands = ON_TEXT, AT(stop) },
    { .name = "stop-token-ids", .kind = CLI_OPTION_IDS, .value_name = "1,2,3",
      .help = "ends the answer at any of these ids", .group = GROUP_SAMPLING,
      .commands = ON_TEXT, AT(stop_token_ids) },
    { .name = "ignore-eos", .kind = CLI_OPTION_FLAG,
      .help = "goes on past the model's end-of-text token", .group = GROUP_SAMPLING,
      .commands = ON_TEXT, AT(ignore_eos) },
    { .name = "no-stop-trim", .kind = CLI_OPTION_FLAG,
      .help = "leaves the stop text at the end of the answer", .group = GROUP_SAMPLING,
      .commands = ON_TEXT, AT(no_stop_trim) },
    { .name = "keep-special", .kind = CLI_OPTION_FLAG,
      .help = "shows special tokens in the answer", .group = GROUP_SAMPLING,
      .commands = ON_TEXT, AT(keep_special) },

    /* serve, bench, logits, inspect. */
    { .name = "host", .kind = CLI_OPTION_TEXT, .value_name = "ADDRESS", .fallback = "127.0.0.1",
      .help = "the address to listen on; 0.0.0.0: all", .group = GROUP_SERVER,
      .commands = ON_SERVE, AT(host) },
    { .name = "port", .kind = CLI_OPTION_INT, .value_name = "N", .min = 0, .max = 65535,
      .fallback = "30000", .help = "the port to listen on; 0: any that is free",
      .group = GROUP_SERVER, .commands = ON_SERVE, AT(port) },
    { .name = "dp-size", .also = "dp|data-parallel-size", .kind = CLI_OPTION_INT, .value_name = "N",
      .min = 1, .max = 64, .fallback = "1",
      .help = "ranks: processes with a device each, among which requests are spread (Open MPI)",
      .group = GROUP_SERVER, .commands = ON_RUN, AT(dp_size) },
    { .name = "served-model-name", .kind = CLI_OPTION_TEXT, .value_name = "NAME",
      .help = "what the server calls the model; default: its path", .group = GROUP_SERVER,
      .commands = ON_SERVE, AT(served_model_name) },
    { .name = "prompt-tokens", .kind = CLI_OPTION_INT, .value_name = "P", .min = 1,
      .max = 0x7fffffff, .fallback = "256", .help = "token ids in each prompt",
      .group = GROUP_BENCH, .commands = ON_BENCH | ON_PLAN, AT(prompt_tokens) },
    { .name = "gen-tokens", .kind = CLI_OPTION_INT, .value_name = "G", .min = 2,
      .max = 0x7fffffff, .fallback = "32", .help = "tokens generated by each request",
      .group = GROUP_BENCH, .commands = ON_BENCH | ON_PLAN, AT(gen_tokens) },
    { .name = "batch", .kind = CLI_OPTION_INT, .value_name = "B", .min = 1, .max = 4096,
      .fallback = "1", .help = "requests at once", .group = GROUP_BENCH, .commands = ON_BENCH,
      AT(batch) },
    { .name = "repeat", .kind = CLI_OPTION_INT, .value_name = "R", .min = 1, .max = 1000,
      .fallback = "3", .help = "measured runs, after one to warm up; medians are reported",
      .group = GROUP_BENCH, .commands = ON_BENCH, AT(repeat) },
    { .name = "out", .kind = CLI_OPTION_TEXT, .value_name = "FILE",
      .help = "of logits: where to write float32[tokens][vocabulary], FILE.npy; default: JSON on "
              "standard output. Of quantize: the GGUF file to make, FILE.gguf; what is there "
              "already is replaced when the new one is complete",
      .group = GROUP_OUTPUT, .commands = ON_LOGITS | ON_QUANTIZE, AT(out) },
    { .name = "type", .kind = CLI_OPTION_TEXT, .value_name = "TYPE",
      .help = "what weights become: F32, F16, BF16, Q8_0, Q6_K, Q5_K_M, Q5_K_S, Q4_K_M, Q4_K_S, "
              "Q4_0, Q3_K_S, Q2_K; those with K are mixes, in which some tensors have a better "
              "type",
      .group = GROUP_OUTPUT, .commands = ON_QUANTIZE, AT(type) },
    { .name = "split-max-size", .kind = CLI_OPTION_SIZE, .value_name = "SIZE",
      .help = "make several files, FILE-00001-of-00003.gguf and so on, none larger than SIZE, such "
              "as 2GiB; default: one file, whatever its size",
      .group = GROUP_OUTPUT, .commands = ON_QUANTIZE, AT(split_max_bytes) },
    { .name = "tensor-type", .kind = CLI_OPTION_TEXTS, .value_name = "GLOB=TYPE",
      .help = "another type for tensors by their names in the file, such as "
              "'*.ffn_down*=Q6_K'; may be given several times, the first that fits counts",
      .group = GROUP_OUTPUT, .commands = ON_QUANTIZE, AT(tensor_types) },
    { .name = "pre", .kind = CLI_OPTION_TEXT, .value_name = "NAME",
      .help = "how text is cut before its tokens are looked for, by GGUF's names (llama-bpe, "
              "qwen2, deepseek-v3, ...); default: as tokenizer.json says",
      .group = GROUP_OUTPUT, .commands = ON_QUANTIZE, AT(pre) },
    { .name = "chunk", .kind = CLI_OPTION_INT, .value_name = "N", .min = 1, .max = 0x7fffffff,
      .help = "prompt tokens in one step; default: --chunked-prefill-size", .group = GROUP_OUTPUT,
      .commands = ON_LOGITS, AT(chunk) },
    { .name = "trace", .kind = CLI_OPTION_TEXT, .value_name = "FILE.json",
      .help = "writes a timeline of computing, copies, reads and stalls at the end, for "
              "https://ui.perfetto.dev; with several ranks a file each, FILE.json.rank0 and on",
      .group = GROUP_OUTPUT, .commands = ON_GENERATE | ON_SERVE | ON_BENCH, AT(trace) },
    { .name = "tensors", .kind = CLI_OPTION_FLAG, .help = "lists every tensor",
      .group = GROUP_OUTPUT, .commands = ON_INSPECT, AT(tensors) },

    /* Where it runs. */
    { .name = "device", .kind = CLI_OPTION_TEXT, .value_name = "SPEC",
      .help = "where the model runs; the kinds are listed below; default: cpu",
      .group = GROUP_DEVICE, .commands = ON_RUN | ON_INSPECT | ON_SELFTEST, AT(device) },
    { .name = "attention-backend", .kind = CLI_OPTION_TEXT, .value_name = "NAME",
      .help = "SGLang's: ascend means --device ascend, where that is not given; others have no "
              "effect",
      .group = GROUP_DEVICE, .commands = ON_OTHERS, AT(attention_backend) },
    { .name = "threads", .kind = CLI_OPTION_INT, .value_name = "N", .min = 1, .max = 1024,
      .help = "threads that compute; default: all processors", .group = GROUP_DEVICE,
      .commands = ON_RUN | ON_SELFTEST | ON_QUANTIZE, AT(threads) },
    { .name = "memory-budget", .kind = CLI_OPTION_SIZE, .value_name = "SIZE",
      .help = "most device memory to take, such as 2GiB; default: all the device has, of cpu what "
              "is free, less an eighth. Of quantize: most memory for buffers and tables; default: "
              "256MiB",
      .group = GROUP_DEVICE, .commands = ON_RUN | ON_QUANTIZE, AT(memory_budget_bytes) },
    { .name = "mem-fraction-static", .kind = CLI_OPTION_REAL, .value_name = "F", .min = 0,
      .max = 1, .above_min = true,
      .help = "the same as a fraction of the device's memory; --memory-budget goes before it",
      .group = GROUP_DEVICE, .commands = ON_RUN, AT(mem_fraction_static) },
    { .name = "host-memory-budget", .kind = CLI_OPTION_SIZE, .value_name = "SIZE",
      .help = "most host memory to take; default: no bound, and --offload-mode auto takes for "
              "homes what is free, less a margin",
      .group = GROUP_DEVICE,
      .commands = ON_RUN, AT(host_memory_budget_bytes) },
    { .name = "cpu-kernels", .kind = CLI_OPTION_TEXT, .value_name = "NAME",
      .help = "what cpu and sim compute with, for measuring, of what this processor runs: scalar "
              "(the reference), avx2, avx-vnni, avx512, amx, neon, dotprod, i8mm; default: the "
              "fastest",
      .group = GROUP_DEVICE, .commands = ON_RUN | ON_SELFTEST, AT(cpu_kernels) },

    /* What moves. */
    { .name = "cpu-offload-gb", .kind = CLI_OPTION_REAL, .value_name = "N", .min = 0, .max = 1e6,
      .fallback = "0", .help = "V1: parameters in model order go home until N GiB are gone",
      .group = GROUP_OFFLOAD, .commands = ON_RUN, AT(cpu_offload_gb) },
    { .name = "offload-group-size", .kind = CLI_OPTION_INT, .value_name = "N", .min = -1,
      .max = 100000, .fallback = "-1", .help = "V2: layers in a group; -1: off",
      .group = GROUP_OFFLOAD, .commands = ON_RUN, AT(offload_group_size) },
    { .name = "offload-num-in-group", .kind = CLI_OPTION_INT, .value_name = "N", .min = 1,
      .max = 100000, .fallback = "1", .help = "V2: of every group the last N layers are moved",
      .group = GROUP_OFFLOAD, .commands = ON_RUN, AT(offload_num_in_group) },
    { .name = "offload-prefetch-step", .kind = CLI_OPTION_INT, .value_name = "N", .min = 0,
      .max = 100000, .fallback = "1", .help = "units that are fetched ahead of computing",
      .group = GROUP_OFFLOAD, .commands = ON_RUN, AT(offload_prefetch_step) },
    { .name = "offload-mode", .kind = CLI_OPTION_CHOICE, .value_name = "MODE",
      .choices = "cpu|meta|shm_cpu|sharded_gpu|disk|auto",
      .help = "where moved weights live: cpu, in host memory; shm_cpu, once in a node's memory "
              "for all its ranks; sharded_gpu, divided over the ranks' devices; disk, in the "
              "checkpoint's files; meta, nowhere (answers are garbage); auto: what does not fit "
              "the device's budget moves, from host memory as far as that has room, then from "
              "the disk; default: auto where there is a --memory-budget and no option says what "
              "moves, else cpu",
      .group = GROUP_OFFLOAD, .commands = ON_RUN, AT(offload_mode) },
    { .name = "offload-params", .kind = CLI_OPTION_TEXT, .value_name = "GLOB",
      .help = "V2: names of the parameters that move, such as '*.self_attn.*'; default: the FFN "
              "or the experts",
      .group = GROUP_OFFLOAD, .commands = ON_RUN, AT(offload_params) },
    { .name = "offload-slots", .kind = CLI_OPTION_INT, .value_name = "N", .min = 1, .max = 100000,
      .help = "places on the device for moved units; default: prefetch step + 1",
      .group = GROUP_OFFLOAD, .commands = ON_RUN, AT(offload_slots) },
    { .name = "offload-experts", .kind = CLI_OPTION_FLAG,
      .help = "moves a mixture's experts one by one, when they are chosen, and caches them",
      .group = GROUP_OFFLOAD, .commands = ON_RUN, AT(offload_experts) },
    { .name = "offload-expert-slots", .kind = CLI_OPTION_INT, .value_name = "N", .min = 1,
      .max = 65536, .help = "experts that the device holds; default: what the budget leaves",
      .group = GROUP_OFFLOAD, .commands = ON_RUN, AT(offload_expert_slots) },
    { .name = "offload-disk", .kind = CLI_OPTION_TEXT, .value_name = "SETTINGS",
      .help = "how files are read, such as 'depth=16,piece=512KiB,direct=auto,uring=auto'",
      .group = GROUP_OFFLOAD, .commands = ON_RUN, AT(offload_disk) },
    { .name = "offload-cache-dir", .kind = CLI_OPTION_TEXT, .value_name = "FOLDER",
      .help = "where weights at home on the disk are kept whose bytes the checkpoint has "
              "otherwise; default: ~/.cache/lighter",
      .group = GROUP_OFFLOAD, .commands = ON_RUN, AT(offload_cache_dir) },
    { .name = "assume", .kind = CLI_OPTION_TEXT, .value_name = "RATES",
      .help = "for the forecast of what moves, instead of measuring: such as "
              "'disk=1GB/s,link=25GB/s,read=20GB/s'",
      .group = GROUP_OFFLOAD, .commands = ON_RUN, AT(assume) },

    /* Requests. */
    { .name = "max-running-requests", .kind = CLI_OPTION_INT, .value_name = "N", .min = 1,
      .max = 4096, .help = "requests that run at once", .group = GROUP_ENGINE,
      .commands = ON_RUN, AT(max_running_requests) },
    { .name = "max-queued-requests", .kind = CLI_OPTION_INT, .value_name = "N", .min = 1,
      .max = 1000000, .help = "requests that wait; more are refused", .group = GROUP_ENGINE,
      .commands = ON_RUN, AT(max_queued_requests) },
    { .name = "chunked-prefill-size", .kind = CLI_OPTION_INT, .value_name = "N", .min = -1,
      .max = 0x7fffffff, .help = "prompt tokens in one step; -1: the whole prompt",
      .group = GROUP_ENGINE, .commands = ON_RUN, AT(chunked_prefill_size) },
    { .name = "max-total-tokens", .kind = CLI_OPTION_INT, .value_name = "N", .min = 1,
      .max = INT_MAX_EXACT, .help = "tokens in the KV cache; default: as many as fit",
      .group = GROUP_ENGINE, .commands = ON_RUN, AT(max_total_tokens) },
    { .name = "kv-cache-dtype", .kind = CLI_OPTION_CHOICE, .value_name = "TYPE",
      .choices = "auto|f32|f16|q8_0", .fallback = "auto",
      .help = "type of keys and values in the KV cache; auto is f32, which is exact",
      .group = GROUP_ENGINE, .commands = ON_RUN, AT(kv_cache_dtype) },
    { .name = "page-size", .kind = CLI_OPTION_INT, .value_name = "N", .min = 1, .max = 65536,
      .help = "tokens in a page of the KV cache", .group = GROUP_ENGINE, .commands = ON_RUN,
      AT(page_size) },
    { .name = "weight-version", .kind = CLI_OPTION_TEXT, .value_name = "TEXT",
      .fallback = "default",
      .help = "what answers call the weights they were made with, until an update says otherwise",
      .group = GROUP_SERVER, .commands = ON_SERVE, AT(weight_version) },
    { .name = "random-seed", .kind = CLI_OPTION_INT, .value_name = "N", .min = 0,
      .max = INT_MAX_EXACT, .help = "seed for whatever is given none of its own",
      .group = GROUP_ENGINE, .commands = ON_RUN, AT(random_seed) },

    /* How it tells. */
    { .name = "json", .kind = CLI_OPTION_FLAG,
      .help = "one JSON object on standard output, everything else on standard error",
      .group = GROUP_OUTPUT, .commands = ON_ALL, AT(json) },
    { .name = "log-level", .kind = CLI_OPTION_CHOICE, .value_name = "LEVEL",
      .choices = "debug|info|warning|error|critical", .fallback = "info",
      .help = "what is told on standard error", .group = GROUP_OUTPUT, .commands = ON_ALL,
      AT(log_level) },
    { .name = "quiet", .kind = CLI_OPTION_FLAG, .help = "tells warnings and errors only",
      .group = GROUP_OUTPUT, .commands = ON_ALL, AT(quiet) },
    { .name = "help", .kind = CLI_OPTION_FLAG, .help = "shows this", .group = GROUP_OUTPUT,
      .commands = ON_ALL, AT(help) },
};

const size_t cli_option_count = sizeof(cli_option_table) / sizeof(cli_option_table[0]);
