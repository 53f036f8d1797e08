"""Transports between CPU processes: both protocols over POSIX shared memory, to be read and to be tested."""
