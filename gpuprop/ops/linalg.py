from .._op import op
