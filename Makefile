# tikz.c
#   make                 train_distill, infer, eval
#   make demo            installs what is missing, builds, distils the starter student, shows a picture and its code
#   make starter         makes everything in dev/starter again (hours; needs TeX and Python)
#   make test            everything that can be tested without a GPU; ends with "N passed, M failed"
#   PRECISION=BF16|FP32  storage type of weights and activations (default BF16)
#   SANITIZE=1           AddressSanitizer and UndefinedBehaviorSanitizer;  SANITIZE=thread  ThreadSanitizer
#   ONEDNN=0             the built-in product instead of oneDNN
#   CC=clang CXX=clang++ another compiler

PRECISION ?= BF16
ONEDNN    ?= 1
BUILD     := build/$(PRECISION)$(if $(SANITIZE),-sanitize-$(SANITIZE))$(if $(filter 0,$(ONEDNN)),-builtin)$(if $(filter clang%,$(notdir $(CC))),-clang)

WARNINGS := -Wall -Wextra -Werror
CPPFLAGS += -MMD -MP -D_GNU_SOURCE
# Threads that wait spin only briefly, in the tests as in the programs (lib/threads.h).
export GOMP_SPINCOUNT ?= 20000

OPTIMISE := -O3 -march=native -ffp-contract=fast -fno-math-errno -fopenmp -g
CFLAGS   += -std=c11 $(WARNINGS) $(OPTIMISE)
CXXFLAGS += -std=c++17 $(WARNINGS) $(OPTIMISE)
LDLIBS   += -lm -lpthread

ifeq ($(PRECISION),FP32)
CPPFLAGS += -DPRECISION_FP32
else ifneq ($(PRECISION),BF16)
$(error PRECISION is $(PRECISION); expected BF16 or FP32)
endif

ifeq ($(SANITIZE),thread)
OPTIMISE += -fsanitize=thread
else ifdef SANITIZE
OPTIMISE += -fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer
endif

# The matrix products: our own on a processor with AMX (there it is the fastest for these shapes), else oneDNN's when its
# header is there, else our own with the compiler's vectors. fp32 has no AMX.
HASH := \#
HAS_ONEDNN := $(if $(filter-out 0,$(ONEDNN)),$(shell echo '$(HASH)include <oneapi/dnnl/dnnl.h>' | $(CC) -x c -fsyntax-only - 2>/dev/null && echo yes))
HAS_AMX    := $(if $(filter BF16,$(PRECISION)),$(shell $(CC) $(OPTIMISE) -dM -E - </dev/null 2>/dev/null | grep -c __AMX_TILE__))
PRODUCTS   := the built-in product (libdnnl-dev would make it faster)
ifneq ($(filter 1,$(HAS_AMX)),)
PRODUCTS := the built-in AMX product
else ifneq ($(HAS_ONEDNN),)
PRODUCTS := oneDNN
CPPFLAGS += -DWITH_ONEDNN
LDLIBS   += -ldnnl
endif

PROGRAMS := train_distill infer eval

all: $(PROGRAMS)
	@echo "built for the CPU, $(PRECISION), products through $(PRODUCTS)"

# The programs at the root are those of the last build's settings.
$(PROGRAMS): %: $(BUILD)/% FORCE
	@cmp -s $< $@ || cp -f $< $@
FORCE:

$(BUILD)/train_distill: train_distill.cu $(BUILD)/cpu.o
	$(CXX) $(CPPFLAGS) $(CXXFLAGS) -MF $@.d -x c++ $< -x none $(BUILD)/cpu.o -o $@ $(LDLIBS)

$(BUILD)/infer $(BUILD)/eval: $(BUILD)/%: %.c $(BUILD)/cpu.o
	$(CC) $(CPPFLAGS) $(CFLAGS) -MF $@.d $< $(BUILD)/cpu.o -o $@ $(LDLIBS)

TESTS := test_kernels test_model test_lib test_dataloader fuzz
$(addprefix $(BUILD)/,$(TESTS) bench_kernels bench_decode): $(BUILD)/%: $(BUILD)/cpu.o
	$(CC) $(CPPFLAGS) $(CFLAGS) -MF $@.d $(firstword $(wildcard dev/$*.c test/$*.c)) $< -o $@ $(LDLIBS)

$(BUILD)/cpu.o: kernels/cpu.c | $(BUILD)
	$(CC) $(CPPFLAGS) $(CFLAGS) -MF $(BUILD)/cpu.d -c $< -o $@

$(BUILD):
	@mkdir -p $@

build-tests: $(addprefix $(BUILD)/,$(TESTS) $(PROGRAMS))

# Both precisions, the built-in product, and the address and thread sanitizers on what is small enough for them.
test:
	@$(MAKE) --no-print-directory build-tests
	@$(MAKE) --no-print-directory build-tests PRECISION=FP32
	@$(MAKE) --no-print-directory build-tests SANITIZE=1
	@$(MAKE) --no-print-directory build/BF16-builtin/test_kernels ONEDNN=0 \
	    $(if $(filter 1,$(HAS_AMX)),CC="$(CC) -mno-amx-tile")
	@$(MAKE) --no-print-directory build/BF16-sanitize-thread/test_dataloader SANITIZE=thread
	@test/run.sh build/BF16/test_kernels build/FP32/test_kernels build/BF16-builtin/test_kernels \
	    build/BF16/test_model build/FP32/test_model build/BF16/test_lib build/BF16/test_dataloader \
	    'build/BF16-sanitize-1/test_kernels --quick' build/BF16-sanitize-1/test_model \
	    build/BF16-sanitize-1/test_lib build/BF16-sanitize-1/test_dataloader build/BF16-sanitize-1/fuzz \
	    build/BF16-sanitize-thread/test_dataloader 'test/test_programs.sh build/BF16' \
	    'test/test_starter.sh build/BF16'

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

clean:
	rm -rf build $(PROGRAMS)

.PHONY: all clean demo starter test build-tests
