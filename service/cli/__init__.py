"""The subcommands of `tidewire`, one file each: `register` declares its arguments, `run` returns its exit status."""
