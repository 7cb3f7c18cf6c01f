"""The subcommands of `tidewire`, one file each: `add` declares its arguments, `run` does it and gives the exit status."""
