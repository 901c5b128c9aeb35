# Lighter's build. Everything is found by its name and place, so that adding a file is enough:
#
#   src/ROOM/**/*.c          part of the library, but for
#     *_test.c               a program of cmocka tests            -> $(B)/tests/
#     *_fuzz.c               a fuzz target (libFuzzer or a corpus)-> $(B)/fuzz/
#     *_avx2.c               compiled for AVX2, FMA and F16C (x86-64 only)
#     *_vnni.c               ... and AVX-VNNI
#     *_avx512.c             ... and AVX-512 with VNNI
#     *_bf16.c               ... and AVX-512 BF16
#     *_amx.c                ... and AVX-512 BF16 and FP16, and AMX
#     mpi_module.c           a module opened at run time, where Open MPI is -> $(B)/lighter_mpi.so
#   src/device/cuda/*.cu     another one, where CUDA's nvcc is -> $(B)/lighter_cuda.so
#   src/server/page.html     the page at /, part of the library's page.o
#   src/cli/main.c           the program                          -> $(B)/lighter
#
#   make                     release, in build/
#   make VARIANT=debug       debug | asan | tsan | fuzz (needs clang), in build-VARIANT/
#   make CC=clang B=build-clang
#   make tests               the test programs; scripts/test runs them
#   make bench               bench/*.c: programs that measure
#   make lint                clang-tidy and cppcheck over the sources; scripts/lint runs it

VARIANT ?= release
ifeq ($(origin CC),default)
CC      := gcc
endif
B       ?= $(if $(filter release,$(VARIANT)),build,build-$(VARIANT))
ifeq ($(VARIANT),fuzz)
CC      := clang
endif

PACKAGES = jansson libmicrohttpd oniguruma libutf8proc liburing libxxhash
WARN     = -Wall -Wextra -Werror -Wshadow -Wstrict-prototypes -Wmissing-prototypes \
           -Wpointer-arith -Wvla -Wwrite-strings
CFLAGS_release = -O3 -g
CFLAGS_debug   = -O1 -g -DLIGHTER_DEBUG
CFLAGS_asan    = -O1 -g -DLIGHTER_DEBUG -fsanitize=address,undefined -fno-sanitize-recover=all \
                 -fno-omit-frame-pointer
CFLAGS_tsan    = -O1 -g -DLIGHTER_DEBUG -fsanitize=thread
CFLAGS_fuzz    = -O1 -g -DLIGHTER_DEBUG -fsanitize=address,undefined,fuzzer-no-link \
                 -fno-sanitize-recover=all
# -ffp-contract=off: a * b + c is fused only where the code says fma, so that every compiler and
# every instruction set rounds the same way.
ALL_CFLAGS  = -std=c17 $(WARN) $(CFLAGS_$(VARIANT)) -ffp-contract=off -fno-math-errno -pthread \
              -D_GNU_SOURCE -Isrc -Iinclude -MMD -MP \
              $(shell pkg-config --cflags $(PACKAGES)) $(CFLAGS)
ALL_LDFLAGS = $(CFLAGS_$(VARIANT)) -pthread $(LDFLAGS)
LIBS        = $(shell pkg-config --libs $(PACKAGES)) -lm -ldl
ARCH        = $(shell $(CC) -dumpmachine | cut -d- -f1)

SOURCES  = $(sort $(shell find src -name '*.c'))
TESTS    = $(filter %_test.c,$(SOURCES))
FUZZ     = $(filter %_fuzz.c,$(SOURCES))
LIBRARY  = $(filter-out %_test.c %_fuzz.c %_module.c src/cli/main.c src/base/fuzz_main.c,$(SOURCES))
ifneq ($(ARCH),x86_64)
LIBRARY := $(filter-out %_avx2.c %_vnni.c %_avx512.c %_bf16.c %_amx.c,$(LIBRARY))
TESTS   := $(filter-out %_avx2_test.c,$(TESTS))
endif
ifneq ($(ARCH),aarch64)
LIBRARY := $(filter-out %_neon.c %_dotprod.c %_i8mm.c,$(LIBRARY))
endif
OBJECTS  = $(LIBRARY:src/%.c=$(B)/obj/%.o)
PROGRAMS = $(TESTS:src/%.c=$(B)/tests/%)
FUZZERS  = $(FUZZ:src/%.c=$(B)/fuzz/%)

# Libraries with the names of CANN's, and tests of them.
CANN_LIBRARIES = $(addprefix $(B)/tests/cann/lib64/,libascendcl.so libnnopbase.so libopapi.so)
CANN_TESTS     = $(patsubst tests/%.c,$(B)/tests/%,$(wildcard tests/cann/*_test.c))

# What is opened at run time is built where its packages are.
MPI      = $(shell pkg-config --exists ompi-c && echo $(B)/lighter_mpi.so)

# The GPUs that CUDA's module has machine code for; PTX serves those that come later. A toolkit leaves
# out what it does not know: 11.8 has up to 90, 12.8 all of these, and 13.0 nothing below 75.
NVCC     = $(firstword $(shell command -v nvcc) $(wildcard /usr/local/cuda/bin/nvcc))
CUDA_SM ?= $(filter $(shell $(NVCC) --list-gpu-code),sm_80 sm_86 sm_89 sm_90 sm_100 sm_120)
CUDA     = $(if $(NVCC),$(if $(filter build,$(B)),$(B)/lighter_cuda.so))

all: $(B)/lighter $(B)/liblighter.a $(MPI) $(CUDA)
tests: $(PROGRAMS) $(CANN_LIBRARIES) $(CANN_TESTS) $(CUDA_STANDIN)
fuzz: $(FUZZERS)

# No fuzz target reaches the kernels.
$(B)/obj/%_avx2.o $(B)/obj/%_vnni.o $(B)/obj/%_avx512.o $(B)/obj/%_bf16.o $(B)/obj/%_amx.o: \
    ALL_CFLAGS += $(if $(filter fuzz,$(VARIANT)),-fno-sanitize=all)
$(B)/obj/%_avx2.o $(B)/lint/%_avx2.tidy: SET_CFLAGS = -mavx2 -mfma -mf16c
$(B)/obj/%_vnni.o $(B)/lint/%_vnni.tidy: SET_CFLAGS = -mavx2 -mfma -mf16c -mavxvnni
$(B)/obj/%_avx512.o $(B)/lint/%_avx512.tidy: \
    SET_CFLAGS = -mavx2 -mfma -mf16c -mavx512f -mavx512bw -mavx512vl -mavx512vnni
$(B)/obj/%_bf16.o $(B)/lint/%_bf16.tidy: \
    SET_CFLAGS = -mavx2 -mfma -mf16c -mavx512f -mavx512bw -mavx512vl -mavx512vnni -mavx512bf16
$(B)/obj/%_amx.o $(B)/lint/%_amx.tidy: \
    SET_CFLAGS = -mavx2 -mfma -mf16c -mavx512f -mavx512bw -mavx512vl -mavx512vnni -mavx512bf16 \
                 -mavx512fp16 -mamx-tile -mamx-int8 -mamx-bf16
$(B)/obj/%_dotprod.o $(B)/lint/%_dotprod.tidy: SET_CFLAGS = -march=armv8.2-a+dotprod
$(B)/obj/%_i8mm.o $(B)/lint/%_i8mm.tidy: SET_CFLAGS = -march=armv8.2-a+dotprod+i8mm

$(B)/obj/%.o: src/%.c Makefile
	@mkdir -p $(@D)
	@echo "CC $@"
	@$(CC) $(ALL_CFLAGS) $(SET_CFLAGS) -c -o $@ $<

$(B)/obj/server/page.o: src/server/page.html

$(B)/liblighter.a: $(OBJECTS)
	@echo "AR $@"
	@rm -f $@
	@ar rcs $@ $^

$(B)/lighter: $(B)/obj/cli/main.o $(B)/liblighter.a
	@echo "LD $@"
	@$(CC) $(ALL_LDFLAGS) -o $@ $^ $(LIBS)

$(B)/lighter_mpi.so: src/cluster/mpi_module.c src/cluster/module.h src/cluster/cluster.h Makefile
	@mkdir -p $(@D)
	@echo "LD $@"
	@$(CC) $(filter-out -MMD -MP,$(ALL_CFLAGS)) $(ALL_LDFLAGS) -fPIC -shared \
	    $(shell pkg-config --cflags ompi-c) -o $@ $< $(shell pkg-config --libs ompi-c)

# All kernels are written for compute capability 8.0, so one PTX becomes machine code for all.
# -fmad=false: as -ffp-contract=off.
CUDA_SOURCES = $(wildcard src/device/cuda/*.cu)
CUDA_OBJECTS = $(CUDA_SOURCES:src/device/cuda/%.cu=$(B)/cuda/%.o)
EMPTY        =
COMMA        = ,
CUDA_FLAGS   = -std=c++17 -O3 -Isrc -fmad=false -Xcompiler -fPIC,-fvisibility=hidden,-Wall,-Wextra \
               -Werror all-warnings \
               -gencode "arch=compute_80,code=[$(subst $(EMPTY) ,$(COMMA),$(strip $(CUDA_SM))),compute_80]" \
               -DLIGHTER_CUDA_BUILT_FOR='"$(strip $(CUDA_SM)) and PTX of compute_80"'

$(B)/cuda/%.o: src/device/cuda/%.cu Makefile
	@mkdir -p $(@D)
	@echo "NVCC $@"
	@$(NVCC) $(CUDA_FLAGS) -MMD -MP -MF $(@:.o=.d) -c -o $@ $<

$(B)/lighter_cuda.so: $(CUDA_OBJECTS)
	@echo "LD $@"
	@$(NVCC) -shared -cudart static -o $@ $^

# The same kernels with the processor in a GPU's place, for tests: tests/cuda/README.md. Sanitizers do
# not follow its fibers, so one build of it, in CUDA_BUILD, serves all variants of a processor's. What
# is built here is run here, so it is made for this processor: without FMA half of op_test is libm.
CUDA_BUILD          ?= build
CUDA_STANDIN         = $(B)/tests/cuda/lighter_cuda.so
CUDA_STANDIN_OBJECTS = $(CUDA_SOURCES:src/device/cuda/%.cu=$(CUDA_BUILD)/tests/cuda/obj/%.o) \
                       $(patsubst tests/cuda/%.cpp,$(CUDA_BUILD)/tests/cuda/obj/standin_%.o,$(wildcard tests/cuda/*.cpp))
CXX_ARCH            ?= -march=native
CXX_FLAGS            = -std=c++17 -O2 -g -fPIC -fvisibility=hidden -ffp-contract=off -fno-math-errno \
                       -ftls-model=initial-exec $(CXX_ARCH) -pthread -Wall -Wextra -Werror \
                       -Wno-unknown-pragmas -Itests/cuda -Isrc -MMD -MP

$(CUDA_BUILD)/tests/cuda/obj/%.o: src/device/cuda/%.cu Makefile
	@mkdir -p $(@D)
	@echo "CXX $@"
	@$(CXX) $(CXX_FLAGS) -x c++ -c -o $@ $<

$(CUDA_BUILD)/tests/cuda/obj/standin_%.o: tests/cuda/%.cpp Makefile
	@mkdir -p $(@D)
	@echo "CXX $@"
	@$(CXX) $(CXX_FLAGS) -c -o $@ $<

$(CUDA_BUILD)/tests/cuda/lighter_cuda.so: $(CUDA_STANDIN_OBJECTS)
	@echo "LD $@"
	@$(CXX) -shared -pthread -o $@ $^

ifneq ($(B),$(CUDA_BUILD))
$(CUDA_STANDIN): $(CUDA_BUILD)/tests/cuda/lighter_cuda.so
	@mkdir -p $(@D)
	@ln -sf $(abspath $<) $@
endif

$(B)/tests/%: $(B)/obj/%.o $(B)/liblighter.a
	@mkdir -p $(@D)
	@echo "LD $@"
	@$(CC) $(ALL_LDFLAGS) -o $@ $^ $(LIBS) -lcmocka

# A stand-in of CANN's libraries, for tests of device/ascend: $(B)/tests/cann is what ASCEND_HOME_PATH
# names on a machine with CANN. tests/cann/README.md says what it imitates.
CANN_DIR       = $(B)/tests/cann
CANN_CFLAGS    = $(ALL_CFLAGS) -fPIC -fvisibility=hidden -Itests/cann
CANN_LDFLAGS   = $(ALL_LDFLAGS) -shared -Wl,-z,nodelete -Wl,-Bsymbolic -Wl,-rpath,'$$ORIGIN'
CANN_OBJECTS   = $(patsubst tests/cann/%.c,$(CANN_DIR)/obj/%.o,$(wildcard tests/cann/$(1)/*.c) \
                 tests/cann/without.c)

$(CANN_DIR)/obj/%.o: tests/cann/%.c Makefile
	@mkdir -p $(@D)
	@echo "CC $@"
	@$(CC) $(CANN_CFLAGS) -c -o $@ $<

$(CANN_DIR)/lib64/libascendcl.so: $(call CANN_OBJECTS,runtime)
$(CANN_DIR)/lib64/libnnopbase.so: $(call CANN_OBJECTS,base) $(CANN_DIR)/lib64/libascendcl.so
$(CANN_DIR)/lib64/libopapi.so: $(call CANN_OBJECTS,ops) $(CANN_DIR)/lib64/libnnopbase.so \
    $(CANN_DIR)/lib64/libascendcl.so
$(CANN_LIBRARIES):
	@mkdir -p $(@D)
	@echo "LD $@"
	@$(CC) $(CANN_LDFLAGS) -Wl,-soname,$(@F) -o $@ $^ -lm

$(CANN_TESTS): $(CANN_DIR)/%: $(CANN_DIR)/obj/%.o $(CANN_LIBRARIES)
	@echo "LD $@"
	@$(CC) $(ALL_LDFLAGS) -Wl,-rpath,'$$ORIGIN/lib64' -o $@ $^ -lm -lcmocka

# Tests of devices open them.
$(filter $(B)/tests/device/% $(B)/tests/model/ascend_test,$(PROGRAMS)): | $(CANN_LIBRARIES)
$(filter $(B)/tests/device/% $(B)/tests/model/cuda_test,$(PROGRAMS)): | $(CUDA_STANDIN)

# Calls that a test stands in for, to make the n-th fail (ld: --wrap).
WRAPPED_offload = malloc calloc realloc strdup device_alloc device_host_alloc stream_create \
                  event_create event_record stream_wait device_copy_in device_fill ckpt_read \
                  ckpt_read_file ckpt__read_much
$(addprefix $(B)/tests/offload/,late_test load_test update_test): ALL_LDFLAGS += $(WRAPPED_offload:%=-Wl,--wrap=%)
$(B)/tests/offload/disk/reader_test: ALL_LDFLAGS += -Wl,--wrap=io_uring_queue_init
WRAPPED_cache = malloc calloc strdup pwrite fallocate ftruncate fsync rename
$(B)/tests/offload/disk/cache_file_test: ALL_LDFLAGS += $(WRAPPED_cache:%=-Wl,--wrap=%)

# In the fuzz variant libFuzzer drives the target; elsewhere src/base/fuzz_main.c feeds it files.
FUZZ_MAIN = $(if $(filter fuzz,$(VARIANT)),,$(B)/obj/base/fuzz_main.o)
$(B)/fuzz/%: $(B)/obj/%.o $(FUZZ_MAIN) $(B)/liblighter.a
	@mkdir -p $(@D)
	@echo "LD $@"
	@$(CC) $(ALL_LDFLAGS) $(if $(filter fuzz,$(VARIANT)),-fsanitize=fuzzer) -o $@ $^ $(LIBS)

# Programs that measure; nothing tests them, scripts/check only reads them.
bench: $(patsubst bench/%.c,$(B)/bench/%,$(wildcard bench/*.c))
$(B)/bench/%: bench/%.c $(B)/liblighter.a
	@mkdir -p $(@D)
	@echo "CC $@"
	@$(CC) $(ALL_CFLAGS) $(ALL_LDFLAGS) -o $@ $^ $(LIBS)

# clang-tidy (with .clang-tidy) over each source, and cppcheck over all. clang-tidy's analyzer follows a
# function through at most LINT_STATES states; 225000, its own limit, takes three times as long. Tests are
# looked at without the analyzer: sanitizers run them.
LINT_STATES ?= 60000
LINT_CFLAGS  = -std=c17 -D_GNU_SOURCE -Isrc -Iinclude -Itests/cann $(shell pkg-config --cflags $(PACKAGES)) \
               $(shell pkg-config --cflags ompi-c 2>/dev/null) \
               -Xclang -analyzer-config -Xclang max-nodes=$(LINT_STATES)
LINTED       = $(LIBRARY) $(TESTS) $(FUZZ) $(filter %/main.c %_module.c %/fuzz_main.c,$(SOURCES)) \
               $(shell find tests/cann -name '*.c')
HEADERS      = $(shell find src include tests/cann -name '*.h')

lint: $(B)/lint/cppcheck $(LINTED:%.c=$(B)/lint/%.tidy)

$(B)/lint/%.tidy: %.c .clang-tidy $(HEADERS) Makefile
	@mkdir -p $(@D)
	@echo "TIDY $<"
	@clang-tidy --quiet $(if $(filter %_test,$*),--checks=-clang-analyzer-*) $< -- $(LINT_CFLAGS) $(SET_CFLAGS) >$@.said 2>&1 || echo "error: it ended so" >>$@.said
	@if grep -E -A3 'warning:|error:' $@.said; then false; else mv $@.said $@; fi

$(B)/lint/cppcheck: .cppcheck $(LINTED) $(HEADERS)
	@mkdir -p $(@D)
	@echo "CPPCHECK"
	@cppcheck --quiet --std=c11 --enable=warning,performance,portability --inline-suppr \
	    --error-exitcode=1 --suppressions-list=.cppcheck -Isrc -Iinclude -Itests/cann \
	    -D_GNU_SOURCE src tests/cann
	@touch $@

clean:
	rm -rf build build-*

.PHONY: all tests fuzz bench lint clean
.SECONDARY:
-include $(shell find $(B) -name '*.d' 2>/dev/null)
