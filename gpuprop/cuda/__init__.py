"""The CUDA side: CuPy as a backend, and binders for our own kernels. Imported only where CuPy is used."""
