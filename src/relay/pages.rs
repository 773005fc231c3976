//! Pages of the write-ahead log, as far as somebody who waits for a position must know of them.

use factlib_protocol::Lsn;

/// Headers of a page of the log: of a segment's first, of others (`SizeOfXLogLongPHD`, `SizeOfXLogShortPHD`).
const SEGMENT_HEADER: u64 = 40;
const PAGE_HEADER: u64 = 24;

/// How a server divides its log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pages {
    page: u64,
    segment: u64,
}

impl Pages {
    /// By `wal_block_size` and `wal_segment_size`, in bytes; none if one of them is 0.
    pub fn new(page: u64, segment: u64) -> Option<Self> {
        (page > 0 && segment > 0).then_some(Self { page, segment })
    }

    /// What must be confirmed so that everything before `lsn` is. The next record begins behind its page's header,
    /// and that is what `pg_current_wal_insert_lsn()` says, while what is confirmed ends with the last record, which
    /// may be the page before: on an idle server that would be waited for in vain.
    pub fn wanted(self, Lsn(lsn): Lsn) -> Lsn {
        let header = if lsn % self.segment < self.page { SEGMENT_HEADER } else { PAGE_HEADER };
        let into_page = lsn % self.page;
        Lsn(if into_page == header { lsn - into_page } else { lsn })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stands_behind_a_pages_header_ends_with_the_page_before() {
        let pages = Pages::new(8192, 16 << 20).unwrap();
        let wanted = |lsn| pages.wanted(Lsn(lsn)).0;
        assert_eq!(wanted(0x200_2018), 0x200_2000, "the header of a page");
        assert_eq!(wanted(0x200_0028), 0x200_0000, "the header of a segment");
        for record in [0x200_2020, 0x200_2028, 0x200_0030, 0x200_2000, 0x200_0018, 0x16B_3748] {
            assert_eq!(wanted(record), record, "{record:x}");
        }
        assert_eq!(Pages::new(0, 1), None);
    }
}
