/* Which card the library stands for. Environment variables say it, so that the program under test is unchanged. */
#include "stand_in.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

/* The architectures that the wheel of torch 2.14.1 for CUDA 13.0 has kernels for (torch.cuda.get_arch_list()). */
static const int BUILT_FOR[] = {75, 80, 86, 90, 100, 120};

static Card the_card;
static pthread_once_t once = PTHREAD_ONCE_INIT;

static double number(const char *name, double otherwise) {
  const char *value = getenv(name);
  return value && *value ? atof(value) : otherwise;
}

/* A kernel runs on later cards of the same generation only: one for 8.6 runs on 8.9, and none for 7.5 on 8.0. */
static int newest_kernels(int capability) {
  int newest = 0;
  for (size_t i = 0; i < sizeof BUILT_FOR / sizeof *BUILT_FOR; i++) {
    if (BUILT_FOR[i] <= capability && BUILT_FOR[i] / 10 == capability / 10) {
      newest = BUILT_FOR[i];
    }
  }
  return newest;
}

/* CUDA C++ Programming Guide, technical specifications by compute capability: shared memory per block, opt-in. */
static int shared_memory(int capability) {
  switch (capability) {
  case 75:
    return 64 << 10;
  case 80:
  case 87:
    return 163 << 10;
  case 86:
  case 89:
  case 120:
    return 99 << 10;
  default:
    return capability >= 90 ? 227 << 10 : 96 << 10;
  }
}

static void read_card(void) {
  const char *name = getenv("STAND_IN_NAME");
  the_card.capability = (int)number("STAND_IN_CAPABILITY", 90);
  the_card.kernels = newest_kernels(the_card.capability);
  the_card.multiprocessors = (int)number("STAND_IN_MULTIPROCESSORS", 132);
  the_card.shared_memory = shared_memory(the_card.capability);
  the_card.memory = (size_t)(number("STAND_IN_GIB", 79) * (1 << 30));
  /* A context with torch's kernels takes about this much (an estimate). */
  the_card.taken_by_others = (size_t)(number("STAND_IN_OTHERS_MIB", 450) * (1 << 20));
  snprintf(the_card.name, sizeof the_card.name, "%s", name ? name : "NVIDIA H100 80GB HBM3");
}

const Card *card(void) {
  pthread_once(&once, read_card);
  return &the_card;
}
