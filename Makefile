# SPDX-License-Identifier: Apache-2.0
# Everything the project does, by name; `make help` lists it.

PYTHON ?= $(firstword $(wildcard /usr/bin/python3) python3)
FUZZ_SECONDS ?= 30
T ?=

# One build tree per flavour: build, build/san, build/fuzz, build/clang.
B := build
WERROR :=
SAN :=

include csrc/flags.mk

ifeq ($(MAKELEVEL),0)
MAKEFLAGS += --no-print-directory -j$(shell nproc)
endif
.DEFAULT_GOAL := build
.DELETE_ON_ERROR:
.SUFFIXES:

VENV := .venv/bin
SETUP := .venv/setup.stamp
SELF := $(abspath .)

CORE := $(patsubst csrc/vmm/%.c,$(B)/obj/vmm/%.o,$(wildcard csrc/vmm/*.c))
BINDING := $(patsubst csrc/py/%.c,$(B)/obj/py/%.o,$(wildcard csrc/py/*.c))
C_TESTS := $(patsubst tests/c/%.c,$(B)/%,$(wildcard tests/c/test_*.c))
FUZZERS := $(patsubst tests/c/%.c,$(B)/%,$(wildcard tests/c/fuzz_*.c))
METADATA := pyvmm_kvm.egg-info/PKG-INFO
BYTECODE := build/bytecode.stamp

# V=1 shows whole commands.
say = $(if $(V),,@echo '  $(1) $@';)
COMPILE = $(CC) $(C_FLAGS) $(C_WARNINGS) $(WERROR) $(SAN) -MMD -MP
# A test may say what it needs of the linker: a line " * link: -Wl,..." in it.
LINK_LINE = $(shell sed -n 's/^ \* link: //p' $<)

##@ The two commands
.PHONY: demo test
demo: build ## set up, build, and let a guest read virtio-rng
	$(B)/pyvmm run build/guest/rng.elf --rng

test: build tests-c ## set up, build, and pass all tests (T= for pytest)
	$(VENV)/python3 -m pytest $(T)

##@ Parts
.PHONY: setup build core tests-c ctest ext launcher guests
setup: $(SETUP) ## Debian packages (as root) and .venv

build: core ext launcher guests $(METADATA) $(BYTECODE) ## all that is compiled

core: $(B)/libvmm.a ## the core as a static library

tests-c: $(C_TESTS) ## the core's tests, built

ctest: tests-c ## run the core's tests alone, no Python needed
	@set -e; for t in $(C_TESTS); do echo "# $$t"; $$t; done

ext: $(B)/_vmm.so ## the extension module

launcher: $(B)/pyvmm ## the native program

guests: $(SETUP) ## the sample guests
	@$(MAKE) -s -C guest OUT=$(SELF)/build/guest

##@ What CI runs
.PHONY: check check-more san fuzz clang lint types bench
check: ## all of it: test, lint, types, clang, san, fuzz
	$(MAKE) test
	$(MAKE) check-more

# What `make test` has not done.
check-more: $(SETUP)
	@tools/setup --check
	$(MAKE) lint
	$(MAKE) types
	$(MAKE) clang
	$(MAKE) san
	$(MAKE) fuzz

# The Python tests run on a copy of the package made of links, but for the
# extension. Interpreters leak by design: leaks are left to the C tests. Tests
# that are about processes of pytest and the like show nothing more here.
OF_PROCESSES := $(addprefix tests/,unit/test_core.py unit/test_package.py \
	$(addprefix kvm/test_,campaign_dask.py guest_coverage.py guest_tests.py \
	guest_tests_page.py plugin_others.py project.py testing_page.py))

san: build ## all tests with the address and undefined sanitizers
	@$(MAKE) B=build/san WERROR=-Werror SAN="$(SANITIZE)" tests-c ext
	@rm -rf build/san/site && mkdir -p build/san/site/pyvmm
	@ln -s $(filter-out %.so %__pycache__,$(wildcard $(SELF)/pyvmm/*)) \
	    $(SELF)/build/san/_vmm.so build/san/site/pyvmm/
	$(VENV)/python3 -m pytest -q tests/unit/test_core.py --core build/san
	PYTHONPATH=build/san/site PYTHONSAFEPATH=1 PYTHONMALLOC=malloc \
	    LD_PRELOAD=$$($(CC) -print-file-name=libasan.so) \
	    ASAN_OPTIONS=detect_leaks=0 \
	    $(VENV)/python3 -m pytest -q --sanitized $(T) tests/unit tests/kvm \
	    $(OF_PROCESSES:%=--ignore=%)

fuzz: ## each fuzz target for FUZZ_SECONDS
	@tools/setup --check
	@$(MAKE) B=build/fuzz CC=clang SAN="$(SANITIZE),fuzzer-no-link" fuzzers
	@set -e; for f in $(patsubst tests/c/%.c,%,$(wildcard tests/c/fuzz_*.c)); \
	    do echo "fuzz: $$f for $(FUZZ_SECONDS) s"; \
	    mkdir -p build/fuzz/corpus/$$f; \
	    build/fuzz/$$f -max_total_time=$(FUZZ_SECONDS) -timeout=10 \
	    -rss_limit_mb=2048 -max_len=65536 -print_final_stats=1 \
	    -artifact_prefix=build/fuzz/ build/fuzz/corpus/$$f \
	    >build/fuzz/$$f.log 2>&1 || { tail -n 60 build/fuzz/$$f.log; exit 1; }; \
	    grep -E 'number_of_executed_units' build/fuzz/$$f.log; done

clang: $(SETUP) ## everything compiled by clang, warnings are errors
	@tools/setup --check
	@$(MAKE) B=build/clang CC=clang WERROR=-Werror core ext launcher tests-c
	@$(MAKE) B=build/gcc WERROR=-Werror core ext launcher tests-c

lint: $(SETUP) ## layout and habits of C and Python
	@tools/setup --check
	@echo "clang-format --dry-run -Werror"
	@clang-format --dry-run -Werror $(wildcard csrc/*/*.[ch] tests/c/*.[ch] \
	    bench/*.c guest/*/*.[ch] guest/include/pyvmm/*.h \
	    guest/template/*/*.[ch])
	$(VENV)/ruff format --check .
	$(VENV)/ruff check .

types: $(SETUP) ## mypy --strict
	$(VENV)/python3 -m mypy --strict pyvmm

bench: build build/bench/bare.so ## figures beside the design's bounds (T=)
	$(VENV)/python3 -m bench $(T)

##@ Housekeeping
.PHONY: clean help fuzzers
clean: ## remove what was built; .venv stays
	rm -rf build dist *.egg-info pyvmm/_vmm*.so
	find . -name __pycache__ -not -path './.venv/*' -exec rm -rf {} +

help: ## this list
	@awk 'BEGIN { FS = ":.*## " } \
	    /^##@/ { printf "\n%s\n", substr($$0, 5) } \
	    /^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' Makefile

fuzzers: $(FUZZERS)

SANITIZE := -U_FORTIFY_SOURCE -fno-omit-frame-pointer \
    -fno-sanitize-recover=undefined -fsanitize=address,undefined

# Changes when its words do, and what depends on it is then made anew.
remember = @mkdir -p $(@D); echo '$(1)' | cmp -s - $@ || echo '$(1)' >$@

build/interpreter: FORCE
	$(call remember,$(PYTHON))

$(SETUP): tools/setup tools/requirements.txt build/interpreter
	@tools/setup $(PYTHON)
	@touch $@

# What the interpreter says about itself, as files of compiler options.
build/python.stamp: csrc/launcher/embed.py $(SETUP)
	@mkdir -p $(@D)/python
	@$(VENV)/python3 $< $(@D)/python
	@touch $@

$(B)/flags: FORCE
	$(call remember,$(COMPILE))
FORCE:

# The core is compiled without Python's headers in reach.
$(B)/obj/vmm/%.o: csrc/vmm/%.c $(B)/flags | $(SETUP)
	@mkdir -p $(@D)
	$(call say,cc)$(COMPILE) -c -o $@ $<

$(B)/obj/py/%.o: csrc/py/%.c $(B)/flags build/python.stamp
	@mkdir -p $(@D)
	$(call say,cc)$(COMPILE) -Icsrc @build/python/includes -c -o $@ $<

$(B)/libvmm.a: $(CORE)
	@rm -f $@
	$(call say,ar)$(AR) rcs $@ $^

$(B)/_vmm.so: $(BINDING) $(B)/libvmm.a
	$(call say,ld)$(CC) -shared $(SAN) -o $@ $^ $(C_LIBS)
	@[ $(B) != build ] || { rm -f pyvmm/_vmm.*so; cp $@ pyvmm/_vmm.so; }

# As pip does when it installs: who may not write there starts as fast.
$(BYTECODE): $(wildcard pyvmm/*.py pyvmm/*/*.py pyvmm/*/*/*.py) $(SETUP)
	@$(VENV)/python3 -m compileall -q $(filter %.py,$^)
	@touch $@

# How a checkout shows installed distributions what it is (entry points).
$(METADATA): setup.py pyproject.toml pyvmm/__init__.py $(SETUP)
	@$(VENV)/python3 setup.py -q egg_info
	@touch $@

$(B)/pyvmm: csrc/launcher/main.c $(B)/flags build/python.stamp
	$(call say,cc)$(COMPILE) @build/python/includes @build/python/defines -o $@ $< \
	    @build/python/link
	@[ $(B) != build ] || install -m 755 $@ $(VENV)/pyvmm

$(B)/test_%: tests/c/test_%.c $(B)/libvmm.a $(B)/flags
	$(call say,cc)$(COMPILE) -Icsrc -o $@ $< $(LINK_LINE) $(B)/libvmm.a $(C_LIBS)

$(B)/bench/%.so: bench/%.c $(B)/flags
	@mkdir -p $(@D)
	$(call say,cc)$(COMPILE) -shared -o $@ $<

$(B)/fuzz_%: tests/c/fuzz_%.c $(B)/libvmm.a $(B)/flags
	$(call say,cc)$(COMPILE) -fsanitize=fuzzer -Icsrc -o $@ $< $(B)/libvmm.a $(C_LIBS)

-include $(wildcard $(B)/obj/*/*.d $(B)/*.d $(B)/bench/*.d)
