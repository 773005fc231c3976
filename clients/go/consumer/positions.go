package consumer

import "github.com/twmb/franz-go/pkg/kgo"

// A Place is where positions rise: one source's facts in one partition.
type Place struct {
	Topic     string
	Partition int32
	Source    string
}

// Positions is the highest position of each place, which is all that is needed to tell a repeat.
//
// After a crash of the relay facts come again, the same to the byte. In each place positions rise, so that one at or
// below the highest is a repeat. Keep what Keep returns together with the work, in one transaction, and put it back
// with Restore when a partition is assigned: then each fact is worked on once.
//
// It is for one goroutine.
type Positions struct {
	highest map[Place]string
}

// IsRepeat tells whether a fact at or above this record's position was kept. A record without a position, of another
// relay or redriven, is never a repeat by this rule: tell those apart by event_id.
func (p *Positions) IsRepeat(record *kgo.Record) bool {
	position := Header(record, HeaderPosition)
	// The empty text is below every position: a place that is not known has no repeats.
	return position != "" && position <= p.highest[place(record)]
}

// Keep remembers that the record was worked on, and returns what is to be stored with the work.
func (p *Positions) Keep(record *kgo.Record) (Place, string) {
	where, position := place(record), Header(record, HeaderPosition)
	p.Restore(where, position)
	return where, p.highest[where]
}

// Restore puts back what was stored. A lower position than the one that is known changes nothing.
func (p *Positions) Restore(where Place, position string) {
	if p.highest == nil {
		p.highest = make(map[Place]string)
	}
	if position > p.highest[where] {
		p.highest[where] = position
	}
}

func place(record *kgo.Record) Place {
	return Place{Topic: record.Topic, Partition: record.Partition, Source: Header(record, HeaderSource)}
}
