/* What a Microvm is made of; for microvm.c and guest.c. */
#pragma once

#include "microvm.h"
#include "runner.h"

struct Microvm {
    Vm vm;
    Vcpu vcpu;
    Ports ports;
    Runner runner;

    /* the thread of the job that works on the guest */
    MachineState *taken;  /* (nullable) in the last pause */
    gint64 paused_us;     /* 0: it is not */
    gboolean loaded;      /* a state that start may run */
    StateMachine arrives; /* why it does not run where it was before */
};
