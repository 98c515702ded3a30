"""What every floor above uses: the lowest one, which imports only dimo_jax.common.errors."""
