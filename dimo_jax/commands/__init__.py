"""What each command does once its flags are parsed: commands/NAME.py for dimo_jax/NAME.py."""
