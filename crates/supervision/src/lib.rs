//! Weak supervision: label models, verifier ensembles and automated labelling on one typed votes matrix.
