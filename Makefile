# tikz.c
#   make                 train_distill, infer, eval, quantize; serve, where libmicrohttpd is installed
#   make demo            installs what is missing, builds, distils the starter student, shows an image and its code
#   make wasm            the web page with the shipped student in it, for any web server: build/wasm (needs Emscripten)
#   make starter         makes everything in dev/starter again (hours; needs TeX and Python)
#   make test            what a change must not break, in ten minutes on two cores; needs what `make` needs
#   make test-all        everything that can be tested without a GPU; both end with "N passed, M failed"
#   PRECISION=BF16|FP32  storage type of weights and activations (default BF16)
#   SANITIZE=1           AddressSanitizer and UndefinedBehaviorSanitizer;  SANITIZE=thread  ThreadSanitizer
#   CPU_SETS="avx2 ..."  only these sets of processor instructions (default: all that the compiler's processors have)
#   MPI=0                without MPI: one process only, on one or two GPUs
#   FORMATS=0            without libwebp, giflib and libtiff: no WebP, GIF and TIFF images
#   NVCC=FILE            CUDA's compiler; where there is one, the programs also know --device cuda
#   CUDA=0|emulated      without CUDA; or with the CUDA kernels on an emulated GPU, for tests (dev/emulator)
#   CC=clang CXX=clang++ another compiler

PRECISION ?= BF16
MPI       ?= 1
FORMATS   ?= 1
NVCC      ?= nvcc
CUDA      ?= 1
BUILD     := build/$(PRECISION)$(if $(SANITIZE),-sanitize-$(SANITIZE))$(if $(filter 0,$(MPI)),-nompi)$(if $(filter 0,$(FORMATS)),-noformats)$(if $(filter clang%,$(notdir $(CC))),-clang)$(if $(filter 0,$(CUDA)),-cpu)$(if $(filter emulated,$(CUDA)),-emulated)

WARNINGS := -Wall -Wextra -Werror
# Our options have variables of their own, beside the user's CPPFLAGS, CFLAGS, CXXFLAGS, NVCCFLAGS and LDLIBS. Were they added to these, an
# inner make would find those of the outer one in the environment.
DEFINES := -MMD -MP -D_GNU_SOURCE
# Threads that wait spin only briefly, in the tests as in the programs (lib/threads.h).
export GOMP_SPINCOUNT ?= 20000

# A sanitizer looks into every access: with -O1 it compiles in a third of the time, and its tests are short.
OPTIMISE := $(if $(SANITIZE),-O1 -g1,-O3 -g) -ffp-contract=fast -fno-math-errno -fopenmp
C_OPTIONS    = -std=gnu11 $(WARNINGS) $(OPTIMISE) # not :=, because a sanitizer is added to OPTIMISE below
CXX_OPTIONS  = -std=c++17 $(WARNINGS) $(OPTIMISE)
LIBRARIES   := -lpng -lz -ljpeg -lm -lpthread

ifeq ($(PRECISION),FP32)
DEFINES += -DPRECISION_FP32
else ifneq ($(PRECISION),BF16)
$(error PRECISION is $(PRECISION); expected BF16 or FP32)
endif

ifeq ($(SANITIZE),thread)
OPTIMISE += -fsanitize=thread
else ifdef SANITIZE
OPTIMISE += -fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer
endif
DEFINES += $(if $(SANITIZE),-DSANITIZED)

# The CPU's kernels are compiled for several sets of instructions, and kernels/cpu/choose.c takes the best that the
# processor has; everything else is compiled for any processor of its kind. The best set comes last.
# Builds for tests of other things (sanitizers, the emulated GPU) have two sets only, which compile sooner.
MACHINE := $(firstword $(subst -, ,$(shell $(CC) -dumpmachine)))
CPU_SETS_x86_64  := avx2 $(if $(SANITIZE)$(filter emulated,$(CUDA)),,avxvnni avx512 avx512vnni \
    $(if $(filter BF16,$(PRECISION)),avx512bf16 amx))
CPU_SETS_aarch64 := neon dotprod
CPU_SETS ?= portable $(CPU_SETS_$(MACHINE))
FLAGS_avx2       := -mavx2 -mfma
FLAGS_avxvnni    := -mavxvnni $(FLAGS_avx2)
FLAGS_avx512     := -mavx512f -mavx512bw -mavx512dq -mavx512vl -mprefer-vector-width=512 $(FLAGS_avx2)
FLAGS_avx512vnni := -mavx512vnni $(FLAGS_avx512)
FLAGS_avx512bf16 := -mavx512bf16 $(FLAGS_avx512vnni)
FLAGS_amx        := -mamx-tile -mamx-bf16 $(FLAGS_avx512bf16)
FLAGS_dotprod    := -march=armv8.2-a+dotprod

# WebP, GIF and TIFF images, each where its library's header is; PNG, JPEG and BMP are always read.
HASH := \#
HAS = $(if $(filter-out 0,$(FORMATS)),$(shell echo '$(HASH)include <$1>' | $(CC) $(filter-out -M%,$(DEFINES) $(CPPFLAGS)) -x c -fsyntax-only - 2>/dev/null && echo yes))
WEBP     := $(call HAS,webp/demux.h)
GIF      := $(call HAS,gif_lib.h)
TIFF     := $(call HAS,tiffio.h)
DEFINES += $(if $(WEBP),-DWITH_WEBP) $(if $(GIF),-DWITH_GIF) $(if $(TIFF),-DWITH_TIFF)
LIBRARIES += $(if $(WEBP),-lwebpdemux -lwebp) $(if $(GIF),-lgif) $(if $(TIFF),-ltiff)
COMMA    := ,
IMAGES   := PNG, JPEG, BMP$(if $(WEBP),$(COMMA) WebP)$(if $(GIF),$(COMMA) GIF)$(if $(TIFF),$(COMMA) TIFF)

# CUDA: the compiler's own folder has the headers and libraries that belong to it. A sanitizer cannot look into a GPU.
OBJECTS   := $(BUILD)/cpu.o $(addprefix $(BUILD)/cpu_,$(addsuffix .o,$(CPU_SETS)))
DEVICES   := the CPU only
CUDA_HOME := $(if $(filter 0 emulated,$(CUDA)),,$(if $(SANITIZE),,$(patsubst %/bin/nvcc,%,$(realpath $(shell command -v $(NVCC) 2>/dev/null)))))
ifeq ($(CUDA),emulated)
DEVICES  := the CPU and an emulated GPU
DEFINES += -DWITH_CUDA -DWITH_NCCL -DCUDA_EMULATION
OBJECTS  += $(addprefix $(BUILD)/,cuda.o emulator.o streams.o cublaslt.o emulated_nccl.o nccl.o)
LIBRARIES += -lstdc++
else ifneq ($(wildcard $(CUDA_HOME)/include/cublasLt.h),)
DEVICES  := the CPU and NVIDIA GPUs
CUDA_LIB := $(firstword $(dir $(wildcard $(addprefix $(CUDA_HOME)/,lib64/libcudart_static.a lib/libcudart_static.a targets/*/lib/libcudart_static.a))))
HAS_NCCL := $(wildcard $(CUDA_HOME)/include/nccl.h)
DEFINES += -DWITH_CUDA $(if $(HAS_NCCL),-DWITH_NCCL)
OBJECTS  += $(BUILD)/cuda.o $(if $(HAS_NCCL),$(BUILD)/nccl.o)
LIBRARIES += -L$(CUDA_LIB) -Wl,-rpath,$(CUDA_LIB) -lcudart_static -ldl -lrt -lstdc++
endif

# Several processes: MPI, where Open MPI's compiler says how, for the program that trains.
MPI_COMPILE := $(if $(filter-out 0,$(MPI)),$(shell mpicc --showme:compile 2>/dev/null))
PROCESSES   := one process (scripts/deps.sh mpi brings what several need)
ifneq ($(MPI_COMPILE),)
PROCESSES := one process or several, through MPI
$(BUILD)/train_distill $(BUILD)/test_comm: private DEFINES += -DWITH_MPI $(MPI_COMPILE)
$(BUILD)/train_distill $(BUILD)/test_comm: private LIBRARIES += $(shell mpicc --showme:link)
endif

# The HTTP server, where its library's header is.
HTTP     := $(shell echo '$(HASH)include <microhttpd.h>' | $(CC) $(filter-out -M%,$(DEFINES) $(CPPFLAGS)) -x c -fsyntax-only - 2>/dev/null && echo yes)
PROGRAMS := train_distill infer eval quantize $(if $(HTTP),serve)

all: $(PROGRAMS)
	@echo "built for $(DEVICES) ($(strip $(CPU_SETS))), $(PRECISION), $(PROCESSES); reads $(IMAGES)$(if $(HTTP),,; without serve (scripts/deps.sh serve brings what it needs))"

# The programs at the root are those of the last build's settings.
$(PROGRAMS): %: $(BUILD)/% FORCE
	@cmp -s $< $@ || cp -f $< $@
FORCE:

# No kernels in it: plain C that looks like CUDA.
$(BUILD)/train_distill: train_distill.cu $(OBJECTS)
	$(CC) $(DEFINES) $(CPPFLAGS) $(C_OPTIONS) $(CFLAGS) -MF $@.d -x c $< -x none $(OBJECTS) -o $@ $(LDFLAGS) $(LIBRARIES) $(LDLIBS)

$(BUILD)/infer $(BUILD)/eval $(BUILD)/quantize: $(BUILD)/%: %.c $(OBJECTS)
	$(CC) $(DEFINES) $(CPPFLAGS) $(C_OPTIONS) $(CFLAGS) -MF $@.d $< $(OBJECTS) -o $@ $(LDFLAGS) $(LIBRARIES) $(LDLIBS)

ifdef HTTP
$(BUILD)/serve: serve.c $(OBJECTS)
	$(CC) $(DEFINES) $(CPPFLAGS) $(C_OPTIONS) $(CFLAGS) -MF $@.d $< $(OBJECTS) -o $@ $(LDFLAGS) $(LIBRARIES) $(LDLIBS) -lmicrohttpd
else
serve $(BUILD)/serve:
	@echo "serve needs libmicrohttpd, whose header microhttpd.h is not installed: scripts/deps.sh serve installs it" >&2; exit 1
endif

# ---- installing ----

# All programs under the one command tikzc, with what ships, manual pages and completions. DESTDIR is put before each path.
PREFIX ?= /usr/local
install: $(PROGRAMS)
	packages/install.sh "$(DESTDIR)$(PREFIX)" $(PROGRAMS)

# build/tikzc_VERSION_ARCHITECTURE.deb, for any processor of the architecture; training in it is one process.
deb:
	$(MAKE) CUDA=0 MPI=0 $(PROGRAMS)
	packages/deb.sh build $(PROGRAMS)

# ---- the page without a server ----

# build/wasm: a folder for any web server, with the page in web/, a model, and what generates programs compiled to WebAssembly,
# with SIMD128 and, for browsers that lack it, without. One thread runs it, so nothing is locked. Tried with Emscripten 3.1.6.
WASM_MODEL   ?= dev/starter/student.safetensors
WASM_SETS    := simd128 portable
WASM_FLAGS   := -std=gnu11 $(WARNINGS) -Wno-unknown-pragmas -Wno-unused-function -O3 -ffp-contract=fast -fno-math-errno \
    -MMD -MP -D_GNU_SOURCE -DKERNELS_FORWARD_ONLY -DPTHREAD_RECURSIVE_MUTEX_INITIALIZER_NP=PTHREAD_MUTEX_INITIALIZER
WASM_LINK    := -O2 -sMODULARIZE -sEXPORT_ES6 -sENVIRONMENT=worker -sALLOW_MEMORY_GROWTH -sMAXIMUM_MEMORY=4GB \
    -sFORCE_FILESYSTEM -sEXPORTED_FUNCTIONS=_malloc,_free -sEXPORTED_RUNTIME_METHODS=FS,ccall
FLAGS_simd128 := -msimd128
WASM_COPIED  := $(patsubst web/%,build/wasm/%,$(wildcard $(addprefix web/*.,js css svg png)))
WASM_MODULES := $(WASM_SETS:%=build/wasm/model-%.js)

# Debian's Emscripten needs a module of Node's that only Debian's own Node finds by itself.
wasm: export NODE_PATH := $(wildcard /usr/share/nodejs)$(if $(NODE_PATH),:$(NODE_PATH))
wasm: build/wasm/files.js
	@echo "the page is in build/wasm; try: python3 -m http.server -d build/wasm, and open http://127.0.0.1:8000/"

build/wasm/files.js: build/wasm/index.html $(WASM_COPIED) $(WASM_MODULES) build/wasm/$(notdir $(WASM_MODEL))
	@cd build/wasm && sha256sum $(filter-out offline.js,$(notdir $^)) $(WASM_SETS:%=model-%.wasm) >files.sums && \
	    awk 'BEGIN { print "self.files = {" } { printf "  \"%s\": \"%s\",\n", $$2, $$1 } END { print "};" }' files.sums \
	    >files.js.partial && rm files.sums && mv files.js.partial files.js

build/wasm/index.html: web/index.html FORCE | build/wasm
	@sed 's/^<html /&data-model="$(notdir $(WASM_MODEL))" /' $< >$@.partial
	@if cmp -s $@.partial $@; then rm $@.partial; else mv $@.partial $@; fi

$(WASM_COPIED): build/wasm/%: web/% | build/wasm
	@cp $< $@

build/wasm/$(notdir $(WASM_MODEL)): $(WASM_MODEL) FORCE | build/wasm
	@cmp -s $< $@ || cp $< $@

$(WASM_MODULES): build/wasm/model-%.js: $(addprefix build/wasm-objects/,wasm.o cpu_%.o choose_%.o) | build/wasm
	emcc $(WASM_LINK) $^ -o $@

build/wasm-objects/wasm.o: web/wasm.c | build/wasm-objects
	emcc $(WASM_FLAGS) -c $< -o $@

$(WASM_SETS:%=build/wasm-objects/cpu_%.o): build/wasm-objects/cpu_%.o: kernels/cpu/cpu.c | build/wasm-objects
	emcc $(WASM_FLAGS) $(FLAGS_$*) -DKERNEL_SET=$* -c $< -o $@

$(WASM_SETS:%=build/wasm-objects/choose_%.o): build/wasm-objects/choose_%.o: kernels/cpu/choose.c | build/wasm-objects
	emcc $(WASM_FLAGS) '-DCPU_SETS(set)=set($*)' -c $< -o $@

build/wasm build/wasm-objects:
	@command -v emcc >/dev/null || { echo "make wasm needs Emscripten, whose compiler emcc is not installed: scripts/deps.sh wasm installs it" >&2; exit 1; }
	@mkdir -p $@

-include $(wildcard build/wasm-objects/*.d)

# Kernels in teaching order (dev/learn/README.md).
LESSONS := objective_rows rmsnorm attention

# The same three on the reader's own processor.
CPU_LESSONS := learn_rmsnorm learn_attention learn_distill_rows
# What doc/walkthrough.md quotes: the training program with another main.
$(BUILD)/walkthrough: doc/walkthrough.c $(OBJECTS)
	$(CC) $(DEFINES) $(CPPFLAGS) $(C_OPTIONS) $(CFLAGS) -I. -MF $@.d $< $(OBJECTS) -o $@ $(LDFLAGS) $(LIBRARIES) $(LDLIBS)

$(addprefix $(BUILD)/,$(CPU_LESSONS)): $(BUILD)/learn_%: dev/learn/cpu/%.c $(OBJECTS)
	$(CC) $(DEFINES) $(CPPFLAGS) $(C_OPTIONS) $(CFLAGS) -march=native -MF $@.d $< $(OBJECTS) -o $@ $(LDFLAGS) $(LIBRARIES) $(LDLIBS)

# test_cdm draws formulas with TeX, and is left to test-all.
METRICS_TESTS := test_report test_logits_metrics test_image_metrics test_text_metrics
# What is compared with references in fp32: built once more with that storage.
FP32_TESTS := test_attention_maps test_beam test_generate test_lora test_rollout test_adaptive_skew test_init
TESTS := test_kernels test_model test_lib test_dataloader fuzz test_tokenizer test_comm test_sandbox test_render test_output \
    test_tidy test_search test_reward test_image_clean test_augment test_teacher_cache $(FP32_TESTS) $(METRICS_TESTS) test_cdm
# These spend their time in the compiler, not in loops. With QUICK=1 the programs do so, too, but for the kernels.
$(addprefix $(BUILD)/,$(filter-out test_kernels test_model,$(TESTS)) $(if $(QUICK),$(PROGRAMS))): private OPTIMISE := \
    $(patsubst -O3,-O1,$(patsubst -g,-g1,$(OPTIMISE)))
$(addprefix $(BUILD)/,$(TESTS) bench_kernels bench_augment bench_decode bench_draft bench_render bench_search bench_beam): $(BUILD)/%: $(OBJECTS)
	$(CC) $(DEFINES) $(CPPFLAGS) $(C_OPTIONS) $(CFLAGS) -MF $@.d $(firstword $(wildcard dev/$*.c dev/bench/$*.c dev/kernels/$*.c test/$*.c)) $(OBJECTS) -o $@ $(LDFLAGS) $(LIBRARIES) $(LDLIBS)

# What the machine and the variables above give: where it has changed since the last build, for example because a library
# was installed, cpu.o and all programs are built again.
$(BUILD)/settings: FORCE | $(BUILD)
	@echo '$(strip $(CPU_SETS)); $(IMAGES); $(DEVICES); $(PROCESSES)' | cmp -s - $@ || \
	    echo '$(strip $(CPU_SETS)); $(IMAGES); $(DEVICES); $(PROCESSES)' >$@

$(BUILD)/cpu.o: kernels/cpu/choose.c $(BUILD)/settings | $(BUILD)
	$(CC) $(DEFINES) $(CPPFLAGS) '-DCPU_SETS(set)=$(foreach s,$(CPU_SETS),set($s))' $(C_OPTIONS) $(CFLAGS) -MF $(BUILD)/cpu.d -c $< -o $@

$(addprefix $(BUILD)/cpu_,$(addsuffix .o,$(CPU_SETS))): $(BUILD)/cpu_%.o: kernels/cpu/cpu.c | $(BUILD)
	$(CC) $(DEFINES) $(CPPFLAGS) -DKERNEL_SET=$* $(C_OPTIONS) $(CFLAGS) $(FLAGS_$*) -MF $(BUILD)/cpu_$*.d -c $< -o $@

ifeq ($(CUDA),emulated)
# What is emulated compiles slowly and runs in small pieces: little optimisation, little debugging information and the
# checks that a GPU's memory needs are faster in all. Memory is read in vectors whatever its type, as a GPU does.
EMULATED_CHECKS := address,alignment,bounds,shift,signed-integer-overflow,integer-divide-by-zero
EMULATE := $(CXX) $(DEFINES) $(CPPFLAGS) -Idev/emulator -O1 -g1 -fno-strict-aliasing -Wno-unknown-pragmas \
    $(patsubst -fsanitize=address%,-fsanitize=$(EMULATED_CHECKS),$(filter-out -O1 -O3 -g -g1,$(CXX_OPTIONS) $(CXXFLAGS)))
$(BUILD)/cuda.o: kernels/cuda/cuda.cu | $(BUILD)
	$(EMULATE) -MF $(BUILD)/cuda.d -x c++ -c $< -o $@

$(BUILD)/nccl.o: dist/nccl.cu | $(BUILD)
	$(EMULATE) -MF $(BUILD)/nccl.d -x c++ -c $< -o $@

$(addprefix $(BUILD)/,emulator.o streams.o cublaslt.o emulated_nccl.o): $(BUILD)/%.o: dev/emulator/%.cpp | $(BUILD)
	$(EMULATE) -O2 -MF $(BUILD)/$*.d -c $< -o $@

$(BUILD)/test_emulator: dev/emulator/test_emulator.cu $(BUILD)/emulator.o $(BUILD)/streams.o
	$(EMULATE) -MF $@.d -x c++ $< -x none $(BUILD)/emulator.o $(BUILD)/streams.o -o $@ $(LIBRARIES) $(LDLIBS)

$(addprefix $(BUILD)/,$(LESSONS)): $(BUILD)/%: dev/learn/%.cu $(addprefix $(BUILD)/,emulator.o streams.o cublaslt.o)
	$(EMULATE) -MF $@.d -x c++ $< -x none $(filter %.o,$^) -o $@ $(LIBRARIES) $(LDLIBS)
else
# For A100 and H100, and as PTX for what comes after them. CUDA_ARCHITECTURES=native: for this machine's GPU alone.
CUDA_ARCHITECTURES ?= 80 90
NVCC_OPTIONS := -std=c++17 -Ikernels/cuda -O3 --threads 2 -Werror all-warnings -Xcompiler -Wall,-Wextra \
    $(if $(filter native,$(CUDA_ARCHITECTURES)),-arch=native,$(foreach a,$(CUDA_ARCHITECTURES),-gencode \
    arch=compute_$a,code=sm_$a) -gencode arch=compute_$(lastword $(CUDA_ARCHITECTURES)),code=compute_$(lastword \
    $(CUDA_ARCHITECTURES)))
$(BUILD)/cuda.o: kernels/cuda/cuda.cu | $(BUILD)
	$(NVCC) $(DEFINES) $(CPPFLAGS) $(NVCC_OPTIONS) $(NVCCFLAGS) -MF $(BUILD)/cuda.d -c $< -o $@

$(BUILD)/nccl.o: dist/nccl.cu | $(BUILD)
	$(NVCC) $(DEFINES) $(CPPFLAGS) $(NVCC_OPTIONS) $(NVCCFLAGS) -MF $(BUILD)/nccl.d -c $< -o $@

$(addprefix $(BUILD)/,$(LESSONS)): $(BUILD)/%: dev/learn/%.cu | $(BUILD)
	$(NVCC) $(DEFINES) $(CPPFLAGS) $(NVCC_OPTIONS) $(NVCCFLAGS) -MF $@.d $< -o $@ -ldl -Xlinker -rpath -Xlinker $(CUDA_LIB)
endif

$(BUILD):
	@mkdir -p $@

build-tests: $(addprefix $(BUILD)/,$(TESTS) $(PROGRAMS))

# ---- tests ----
#
# All builds of a target are made by one make, so that every core is busy to the end; then test/run.sh runs the tests, one
# after another. A command that cannot run on this machine says "not tested here: ...".

JOBS    ?= $(shell nproc)
SEVERAL := $(if $(MPI_COMPILE),yes)
# On a machine without a GPU the tests use programs without CUDA, which nvcc need not compile: the emulated GPU runs the
# kernels, and dev/kernels/compile_proof.sh shows that nvcc takes them.
PLAIN   := $(if $(CUDA_HOME),$(if $(wildcard /dev/nvidia0),,-cpu))
BUILD_PLAIN := +@$(MAKE) --no-print-directory CUDA=$(if $(PLAIN),0,1)

test:
	@$(MAKE) -j$(JOBS) --no-print-directory quick-BF16 quick-FP32 quick-sanitized quick-emulated
	@echo 'make test-all runs the rest: all cases of every test, other sets of instructions, ThreadSanitizer, all tests on the emulated GPU' \
	    'and on real ones, kills of ranks and full disks'
	@test/run.sh -j 2 'build/BF16$(PLAIN)/test_kernels --quick cpu' 'build/FP32$(PLAIN)/test_kernels --quick cpu' \
	    build/BF16$(PLAIN)/test_model build/FP32$(PLAIN)/test_model $(addprefix build/FP32$(PLAIN)/,$(FP32_TESTS)) \
	    'build/BF16-sanitize-1/test_kernels --smoke' build/BF16-sanitize-1/test_lib \
	    build/BF16-sanitize-1/test_tokenizer build/BF16-sanitize-1/test_dataloader build/BF16-sanitize-1/fuzz \
	    build/BF16-sanitize-1/test_output build/BF16-sanitize-1/test_image_clean build/BF16-sanitize-1/test_augment build/BF16-sanitize-1/test_tidy \
	    $(addprefix build/BF16-sanitize-1/,$(METRICS_TESTS)) \
	    'build/FP32-emulated/test_kernels --smoke cuda' \
	    -j 1 build/BF16-sanitize-1/test_sandbox build/BF16-sanitize-1/test_render build/BF16-sanitize-1/test_search build/BF16$(PLAIN)/test_reward \
	    'test/test_comm.sh build/BF16$(PLAIN) quick' \
	    'test/test_parallel.sh build/BF16$(PLAIN) build/FP32$(PLAIN) quick' \
	    'test/test_programs.sh build/BF16$(PLAIN) quick' 'test/test_runs.sh build/BF16$(PLAIN) quick' \
	    'test/test_teacher_cache.sh build/BF16$(PLAIN)' 'test/test_on_policy.sh build/BF16$(PLAIN)' \
	    'test/test_dataset_write.sh build/BF16$(PLAIN)' 'test/test_reinforce.sh build/BF16$(PLAIN)' \
	    'test/test_starter.sh build/BF16$(PLAIN) quick'

quick-BF16:
	$(BUILD_PLAIN) $(addprefix build/BF16$(PLAIN)/,$(PROGRAMS) test_kernels test_model test_comm test_reward test_teacher_cache)
quick-FP32:
	$(BUILD_PLAIN) PRECISION=FP32 $(addprefix build/FP32$(PLAIN)/,test_kernels test_model $(FP32_TESTS) $(if $(SEVERAL),train_distill))
quick-sanitized:
	+@$(MAKE) --no-print-directory SANITIZE=1 \
	    $(addprefix build/BF16-sanitize-1/,test_kernels test_lib test_tokenizer test_dataloader fuzz test_sandbox test_render test_output test_image_clean test_augment test_tidy test_search $(METRICS_TESTS))
quick-emulated:
	+@$(MAKE) --no-print-directory CUDA=emulated PRECISION=FP32 build/FP32-emulated/test_kernels

# Everything: what `make test` runs, and then the rest.
test-all:
	+@test/run.sh '$(MAKE) --no-print-directory test' '$(MAKE) --no-print-directory test-rest'

# Both precisions, several sets of instructions, the address and thread sanitizers on what is small enough for them, and
# the CUDA kernels on an emulated GPU (on a real one too, where there is one: test_kernels takes every device that
# answers). A test that `make test` runs whole is not repeated.
test-rest:
	@$(MAKE) -j$(JOBS) --no-print-directory all-BF16 all-FP32 all-sanitized all-thread all-pairs all-nompi all-noformats \
	    all-emulated all-emulated-sanitized
	@test/run.sh -j 2 dev/check_includes.sh test/test_adding.py $(foreach l,$(CPU_LESSONS),'build/BF16$(PLAIN)/$l --check') \
	    build/BF16$(PLAIN)/test_kernels build/FP32$(PLAIN)/test_kernels 'build/pairs/test_kernels --quick cpu' \
	    'TIKZ_CPU=portable build/BF16$(PLAIN)/test_kernels --quick cpu' \
	    build/BF16$(PLAIN)/test_lib build/BF16$(PLAIN)/test_tokenizer build/BF16$(PLAIN)/test_dataloader \
	    build/BF16$(PLAIN)/test_beam build/BF16-sanitize-1/test_beam build/BF16-sanitize-1/test_generate \
	    $(addprefix build/BF16-sanitize-1/,test_rollout test_adaptive_skew test_init test_teacher_cache) \
	    build/BF16$(PLAIN)/test_lora build/BF16-sanitize-1/test_lora \
	    'build/BF16-sanitize-1/test_kernels --quick' build/BF16-sanitize-1/test_model \
	    'build/BF16-sanitize-1/test_tidy all' build/BF16-sanitize-1/test_attention_maps build/BF16-sanitize-1/test_cdm \
	    build/BF16-noformats-cpu/test_lib \
	    build/BF16-sanitize-thread/test_dataloader build/BF16-sanitize-1-emulated/test_emulator \
	    'dev/learn/test.sh build/BF16-sanitize-1-emulated $(LESSONS)' \
	    'build/BF16-sanitize-1-emulated/test_kernels --smoke cuda' 'build/FP32-emulated/test_kernels --quick cuda' \
	    'build/FP32-emulated/test_model test/fixtures cuda gqa mapped rect layers qwen' \
	    'build/FP32-emulated/test_attention_maps test/fixtures cuda' 'build/FP32-emulated/test_generate cuda' 'build/FP32-emulated/test_lora test/fixtures cuda' 'build/FP32-emulated/test_rollout cuda' \
	    'build/FP32-emulated/test_init cuda' \
	    'build/FP32-emulated/test_teacher_cache cuda' \
	    'build/FP32-emulated/test_logits_metrics cuda' \
	    -j 1 'test/test_devices.sh build/FP32-emulated' \
	    'test/test_comm.sh build/BF16$(PLAIN)' 'test/test_comm.sh build/BF16-nompi-cpu without_mpi' \
	    'test/test_comm.sh build/BF16-sanitize-1 sanitized' 'test/test_comm.sh build/BF16-sanitize-thread sanitized' \
	    'test/test_comm.sh build/FP32-emulated emulated' \
	    'test/test_parallel.sh build/BF16$(PLAIN) build/FP32$(PLAIN)' \
	    -j 2 'test/test_programs.sh build/BF16$(PLAIN)' 'test/test_runs.sh build/BF16$(PLAIN)' \
	    'test/test_packages.sh build/BF16$(PLAIN)' 'test/test_experiments.sh build/BF16$(PLAIN)' 'test/test_starter.sh build/BF16$(PLAIN)' \
	    'GROUPS_TO_RUN=quantised_quality test/test_programs.sh build/FP32$(PLAIN)' \
	    $(if $(HTTP),'test/test_serve.py build/BF16$(PLAIN)' 'test/test_serve.py build/BF16-sanitize-1 statuses broken files leaving')

all-BF16:
	$(BUILD_PLAIN) $(addprefix build/BF16$(PLAIN)/,$(PROGRAMS) test_kernels test_model test_beam test_lora test_lib test_tokenizer test_dataloader test_reward test_teacher_cache \
	    test_comm $(METRICS_TESTS) test_cdm $(CPU_LESSONS) walkthrough)
all-FP32:
	$(BUILD_PLAIN) PRECISION=FP32 $(addprefix build/FP32$(PLAIN)/,train_distill eval test_kernels test_model $(FP32_TESTS))
all-sanitized:
	+@$(MAKE) --no-print-directory SANITIZE=1 $(addprefix build/BF16-sanitize-1/,$(TESTS) $(if $(HTTP),serve))
all-thread:
	+@$(MAKE) --no-print-directory SANITIZE=thread $(addprefix build/BF16-sanitize-thread/,test_dataloader test_comm)
# What AVX512-BF16 multiplies, pairs of bf16, where the processor cannot: the same packing, the product in two steps.
all-pairs:
	+@CPPFLAGS=-DPAIRS_EMULATED $(MAKE) --no-print-directory CUDA=0 MPI=0 BUILD=build/pairs \
	    CPU_SETS='portable $(filter avx2,$(CPU_SETS))' build/pairs/test_kernels
all-nompi:
	+@$(MAKE) --no-print-directory MPI=0 CUDA=0 build/BF16-nompi-cpu/test_comm
all-noformats:
	+@$(MAKE) --no-print-directory FORMATS=0 CUDA=0 build/BF16-noformats-cpu/test_lib
all-emulated:
	+@$(MAKE) --no-print-directory CUDA=emulated PRECISION=FP32 \
	    $(addprefix build/FP32-emulated/,test_kernels test_model test_attention_maps test_generate test_lora test_rollout test_adaptive_skew test_init test_teacher_cache test_logits_metrics test_comm train_distill infer $(if $(HTTP),serve))
all-emulated-sanitized:
	+@$(MAKE) --no-print-directory CUDA=emulated SANITIZE=1 \
	    $(addprefix build/BF16-sanitize-1-emulated/,test_emulator test_kernels $(LESSONS))

# The shipped data, tokenizer, teacher and student, made again; see dev/starter/README.md. Hours.
starter: train_distill
	dev/starter/build.sh

# Into a folder of its own, so that nothing of the user's is overwritten.
demo:
	@scripts/deps.sh build
	@$(MAKE) --no-print-directory all
	./train_distill --out out-demo --overwrite
	./infer --model out-demo/best.safetensors --show dev/starter/example.png

-include $(wildcard $(BUILD)/*.d)

# Neither what scripts/deps.sh downloaded (build/venv, other environments beside it, build/cuda) nor what the recipes of runs/ and
# `make starter` have trained, which may have taken days.
KEPT := venv% cuda figures formula student experiments starter
clean:
	rm -rf $(filter-out $(addprefix build/,$(KEPT)),$(wildcard build/*)) $(PROGRAMS)

.PHONY: all clean install deb wasm demo starter build-tests test quick-BF16 quick-FP32 quick-sanitized quick-emulated test-all test-rest all-BF16 \
    all-FP32 all-sanitized all-thread all-pairs all-nompi all-noformats all-emulated all-emulated-sanitized
