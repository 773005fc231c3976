import unittest

from factlib.consumer import Positions, decode


def at(position, source="1/2"):
    return [("factlib_position", position.encode()), ("factlib_source", source.encode())]


def redriven(event_id):
    return [("event_id", event_id.encode()), ("factlib_redrive", b"01")]


class ConsumerTest(unittest.TestCase):
    def test_what_is_not_above_the_highest_position_of_its_place_is_a_repeat_once_it_was_kept(self):
        positions = Positions()
        self.assertFalse(positions.is_repeat("t", 0, at("02")))
        self.assertFalse(positions.is_repeat("t", 0, at("02")), "asking keeps nothing: the work may fail")
        positions.keep("t", 0, at("02"))
        positions.keep("t", 0, at("01"))
        for position, repeat in [("01", True), ("02", True), ("03", False)]:
            self.assertEqual(positions.is_repeat("t", 0, at(position)), repeat, position)
        self.assertFalse(positions.is_repeat("u", 0, at("01")))
        self.assertFalse(positions.is_repeat("t", 1, at("01")))
        self.assertFalse(positions.is_repeat("t", 0, at("01", "1/3")))
        self.assertTrue(Positions(positions.highest).is_repeat("t", 0, at("02")))

    def test_what_was_redriven_is_told_by_its_id_and_what_others_produced_is_never_a_repeat(self):
        positions = Positions(redriven=["stored"])
        self.assertTrue(positions.is_repeat("t", 0, redriven("stored")))
        self.assertFalse(positions.is_repeat("t", 0, redriven("a")))
        positions.keep("t", 0, redriven("a"))
        self.assertTrue(positions.is_repeat("t", 0, redriven("a")))
        positions.keep("t", 0, [("event_id", b"other")])
        self.assertFalse(positions.is_repeat("t", 0, [("event_id", b"other")]))
        self.assertFalse(positions.is_repeat("t", 0, None))

    def test_what_is_no_envelope_is_refused_and_unknown_fields_are_passed_over(self):
        for envelope in [b'{"id":"1"}', b"\x0a\x05A", b"\xff" * 11, b"\x0a\x01\xff"]:
            with self.assertRaises(ValueError):
                decode(envelope)
        event = decode(b"\x0a\x01A\x52\x01B\x60\x07\x69\x01\x02\x03\x04\x05\x06\x07\x08")
        self.assertEqual((event.id, event.metadata), ("A", {}))


if __name__ == "__main__":
    unittest.main()
