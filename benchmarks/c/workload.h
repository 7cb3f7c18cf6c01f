/* Workloads: publishing and counting. */
#ifndef WORKLOAD_H
#define WORKLOAD_H

void workload_begin(void); /* also creates the connections */
void workload_phase(double seconds);

#endif
