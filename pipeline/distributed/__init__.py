"""Join ranks, and choose the devices that they compute on."""
