/* What the host asked the card for. A test starts the record, does its work, and reads the record from a file. */
#include "stand_in.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
  Kind kind;
  int type;
  int part;
  double amount;
  const char *name;
} Entry;

/* In the order of Kind. */
static const char *const KINDS[] = {"kernel",
                                    "gemm",
                                    "memset",
                                    "to_device",
                                    "to_device_pageable",
                                    "to_host",
                                    "to_host_pageable",
                                    "on_device",
                                    "wait",
                                    "allocation",
                                    "release",
                                    "pinned",
                                    "mark"};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static Entry *entries;
static size_t used, room;
static int recording;
static int part; /* of the work; set by the test, so that a part of it can be counted apart */

void record(Kind kind, const char *name, double amount, int type) {
  pthread_mutex_lock(&lock); /* backward runs in a thread of its own */
  if (recording) {
    if (used == room) {
      room = room ? 2 * room : 1 << 16;
      entries = realloc(entries, room * sizeof *entries);
      if (!entries) {
        abort();
      }
    }
    entries[used++] = (Entry){.kind = kind, .type = type, .part = part, .amount = amount, .name = name};
  }
  pthread_mutex_unlock(&lock);
}

EXPORT void stand_in_start(void) {
  pthread_mutex_lock(&lock);
  used = 0;
  part = 0;
  recording = 1;
  pthread_mutex_unlock(&lock);
}

EXPORT void stand_in_stop(void) {
  pthread_mutex_lock(&lock);
  recording = 0;
  pthread_mutex_unlock(&lock);
}

/* All calls from now on belong to this part of the work; 0 = to none with a name. */
EXPORT void stand_in_part(int number) {
  pthread_mutex_lock(&lock);
  part = number;
  pthread_mutex_unlock(&lock);
}

/* An entry of the test's own, to find a place in the record by. */
EXPORT void stand_in_mark(void) {
  record(MARK, "mark", 0, 0);
}

/* One line per call: kind, name, amount, type, part, with tabs between. Returns 0 on success. */
EXPORT int stand_in_write(const char *path) {
  FILE *file = fopen(path, "w");
  if (!file) {
    return -1;
  }
  pthread_mutex_lock(&lock);
  for (size_t i = 0; i < used; i++) {
    const Entry *entry = entries + i;
    fprintf(file, "%s\t%s\t%.0f\t%d\t%d\n", KINDS[entry->kind], entry->name, entry->amount, entry->type, entry->part);
  }
  pthread_mutex_unlock(&lock);
  return fclose(file);
}
