# SPDX-License-Identifier: Apache-2.0
# How C is compiled: read by the Makefile and by setup.py, so that what is
# tested is what is shipped. Lines of the form NAME = words, nothing else.
C_FLAGS = -std=gnu11 -O2 -g -fPIC -fvisibility=hidden -D_GNU_SOURCE -U_FORTIFY_SOURCE -D_FORTIFY_SOURCE=2 -fstack-protector-strong
C_WARNINGS = -Wall -Wextra -Wshadow -Wpointer-arith -Wstrict-prototypes -Wvla -Wcast-qual -Wwrite-strings -Wmissing-prototypes
C_LIBS = -lelf -lpthread
