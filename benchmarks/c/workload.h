/* What is published when, and what comes of it. */
#ifndef WORKLOAD_H
#define WORKLOAD_H

void workload_begin(void); /* makes the connections, too */
void workload_phase(double seconds);

#endif
