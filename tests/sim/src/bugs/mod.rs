//! Bugs planted on purpose, each a layer that lies where a broken product would: the checkers must
//! catch every one. None of this is in the product.
