"""Dimensions are integers times symbols; everything else is one opaque symbol."""

import onnx_ir as ir

from converters.compaction.dimensions import Monomial, product, same_dim


def test_a_product_of_symbols_is_split_into_factor_and_symbols() -> None:
    assert Monomial.of("12*batch * seq") == product([12, ir.SymbolicDim("seq"), ir.SymbolicDim("batch")])


def test_an_expression_that_is_no_product_is_one_symbol() -> None:
    minimum = Monomial.of("Min(512, a*b)")
    assert minimum is not None
    assert dict(minimum.symbols) == {"Min(512, a*b)": 1}
    assert minimum.divide(Monomial.of("a") or Monomial()) is None


def test_division_fails_unless_the_quotient_is_a_monomial() -> None:
    twelve_batch = Monomial.of("12*batch")
    assert twelve_batch is not None
    quotient = twelve_batch.divide(Monomial(4))
    assert quotient is not None
    assert quotient.to_dim() == ir.SymbolicDim("3*batch")
    assert twelve_batch.divide(Monomial(5)) is None
    assert twelve_batch.divide(Monomial.of("seq") or Monomial()) is None


def test_anonymous_dimensions_are_never_equal() -> None:
    assert not same_dim(ir.SymbolicDim(None), ir.SymbolicDim(None))
    assert same_dim(ir.SymbolicDim("a*b"), ir.SymbolicDim("b*a"))
    assert not same_dim(4, ir.SymbolicDim("batch"))
    assert product([3, ir.SymbolicDim(None)]) is None
