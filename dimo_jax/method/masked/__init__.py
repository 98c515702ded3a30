"""What all masked diffusion shares: schedules, masks, guidance, losses, the pretraining step."""
