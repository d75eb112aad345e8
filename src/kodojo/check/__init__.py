"""Will they load? Many modules against many kernels, by dry loads."""
