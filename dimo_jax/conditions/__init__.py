"""What a network is conditioned on."""
