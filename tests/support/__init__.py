"""What tests of several rooms share. `setup.cfg` puts `tests` on pytest's path; workers get it from `run_worker`."""
