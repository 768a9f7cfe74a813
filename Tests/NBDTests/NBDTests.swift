// NBD
