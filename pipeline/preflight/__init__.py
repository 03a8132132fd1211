"""Find out whether machines are fit for a training, and which of them is the odd one."""
