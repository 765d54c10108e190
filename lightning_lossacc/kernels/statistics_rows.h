// From reduced classes to sums: values of LANES rows, sums of a slice, slices of a batch. A part of statistics.cpp.

// What a slice leaves behind; sizes depend on the number of confidence bins.
struct Sizes {
    int64_t bins, longs, doubles;
    explicit Sizes(int64_t bins) : bins(bins), longs(18 + 2 * bins + MARGIN_EDGES + 1),
                                   doubles(8 + 4 * bins + 4 * GRID_SIZE) {}
};
struct Partial {
    int64_t *flags, *items, *halves, *part, *cells, *margins;
    double *columns, *item_sums, *part_nll, *cell_confidence, *cell_nll, *grid;
    Partial(int64_t* longs, double* doubles, const Sizes& sizes)
        : flags(longs), items(longs + 9), halves(longs + 13), part(longs + 15), cells(longs + 18),
          margins(cells + 2 * sizes.bins), columns(doubles), item_sums(doubles + 5), part_nll(doubles + 7),
          cell_confidence(doubles + 8), cell_nll(cell_confidence + 2 * sizes.bins), grid(cell_nll + 2 * sizes.bins) {}
};

// The rows of a slice, column by column.
struct Slice {
    static constexpr int64_t ROWS = SLICE_ROWS + LANES;
    alignas(64) float columns[NUM_COLUMNS][ROWS];
    alignas(64) float grid[2 * GRID_SIZE + 1][ROWS];
    alignas(64) int32_t valid[ROWS], has_margin[ROWS], second[ROWS];
    int32_t predicted[ROWS], cell[ROWS], margin_cell[ROWS];
    uint8_t flags[ROWS];
    int64_t mixed[ROWS];
};

struct Thread {
    Buffer<Slice> slice;
    Buffer<float> scratch;
};
inline Thread& own_thread() { static thread_local Thread thread; return thread; }

// What is kept of the rows of a round, for the sums by class.
struct Round {
    Buffer<float> nll;
    Buffer<int32_t> predicted;
    Buffer<uint8_t> flags;
    Buffer<int64_t> longs;
    Buffer<double> doubles;
};
inline Round& own_round() { static thread_local Round round; return round; }

inline int64_t mix(float first, float last) {
    int32_t low, high;
    std::memcpy(&low, &first, 4);
    std::memcpy(&high, &last, 4);
    const int64_t mixed = (int64_t)((uint64_t)(int64_t)low * 0x9E3779B1u + (uint64_t)(int64_t)high * 0x85EBCA77u);
    return (int64_t)((uint64_t)(mixed ^ (mixed >> 29)) * 0x1B873593u);
}
inline int half_of(int64_t total) {
    return (int)((int64_t)((uint64_t)(total ^ (total >> 17)) * 0x2C1B3C6Du) >> 33) & 1;
}

inline int32_t target_flags(const Setup& setup, int64_t classes, int64_t target) {
    if (setup.has_ignore && target == setup.ignore_index) return IGNORED;
    if (target >= 0 && target < classes) return VALID;
    return target == UNSUPPORTED ? UNSUPPORTED_ROW : OUTSIDE;
}

// The cross-entropy of a row that holds something not finite, as arithmetic gives it.
template <class E> float hopeless_nll(const Rows<E>& rows, int lane) {
    float highest = -INFINITE;
    for (int64_t c = 0; c < rows.classes; ++c) {
        const float value = rows.at(lane, c);
        if (std::isnan(value)) return value;
        highest = value > highest ? value : highest;
    }
    return std::isfinite(highest) ? INFINITE : __builtin_nanf("");
}

// The bin below or above a guess where the edges say so; only they tell on which side of them a value lies.
inline int32_t settle(float value, int32_t guess, const float* edges, int32_t last) {
    return guess + (guess < last && value >= edges[guess + 1]) - (value < edges[guess]);
}

template <class E>
void write_rows(const Setup& setup, const Rows<E>& rows, const int32_t* by_target, const Tile& tile, int64_t at,
                Slice& slice) {
    const Ints shifted = tile.shift != 0.0f;
    const bool shifts = any(shifted);
    const Floats one = all(1.0f);
    const Floats own = shifts ? vanishing_exponential(-tile.shift) : one;
    const Floats total = tile.powers.total[ONE] + own, first = tile.powers.first[ONE] - tile.shift * own;
    const Floats squares = tile.powers.total[TWO] + own * own;
    const Floats log_total = logarithm(total), margin = -tile.other;
    const Floats confidence = exponential(larger(tile.other, all(0.0f)) - tile.shift) / total;
    store(slice.columns[NLL] + at, log_total + tile.shift);
    store(slice.columns[CONFIDENCE] + at, confidence);
    store(slice.columns[ENTROPY] + at, log_total - first / total);
    store(slice.columns[BRIER] + at, squares / (total * total) - 2.0f * own / total + 1.0f);
    store(slice.columns[MARGIN] + at, margin);
    for (int t = 0; t < GRID_SIZE; ++t) {
        const int p = GRID[t];
        const Floats own_power = shifts ? vanishing_exponential(-BETA[p] * tile.shift) : one;
        const Floats sum = tile.powers.total[p] + own_power;
        store(slice.grid[t] + at, logarithm(sum) + BETA[p] * tile.shift);
        store(slice.grid[GRID_SIZE + t] + at, (tile.powers.first[p] - tile.shift * own_power) / sum + tile.shift);
    }

    Ints status;
    std::memcpy(&status, by_target, sizeof status);
    Ints own_class;
    std::memcpy(&own_class, rows.target, sizeof own_class);
    const Ints considered = status == all(VALID), valid = considered & tile.sound;
    const Ints correct = tile.beat == 0, nothing{};
    status = (considered ? nothing : status) | (considered & ~tile.sound & NOT_FINITE) | (valid & VALID) |
             (valid & (margin == 0.0f) & TIE) | (valid & correct & CORRECT) |
             (valid & (tile.beat < all((int32_t)setup.top_k)) & TOP_K);
    store(slice.valid + at, valid);
    store(slice.has_margin + at, valid & ((Ints)margin << 1 != all((int32_t)0xff000000)));
    store(slice.predicted + at, correct ? own_class : tile.best);

    const float bins = (float)setup.bins;
    const Ints guess = __builtin_convertvector(smaller(confidence * bins, all(bins - 1.0f)), Ints);
    Floats size = larger(margin, -margin), root;
    for (int lane = 0; lane < LANES; ++lane) root[lane] = __builtin_sqrtf(size[lane] * size[lane] + 1.0f);
    size = logarithm(size + root) * BINS_PER_ASINH;
    const Floats step = smaller(larger((margin < 0.0f ? -size : size) + 64.0f, all(0.0f)), all(128.0f));
    const Ints margin_guess = __builtin_convertvector(step, Ints);
    for (int lane = 0; lane < rows.count; ++lane) {
        const int64_t n = at + lane;
        slice.flags[n] = (uint8_t)status[lane];
        int32_t cell = guess[lane], place = margin_guess[lane];
        if (valid[lane]) {
            cell = settle(confidence[lane], cell, setup.bin_edges, (int32_t)setup.bins - 1);
            place = 1 + settle(margin[lane], place, setup.margin_edges, MARGIN_EDGES - 1);
        }
        slice.cell[n] = cell + (correct[lane] ? (int32_t)setup.bins : 0);
        slice.margin_cell[n] = place;
        const E* row = rows.data + rows.offset[lane];
        slice.mixed[n] = mix(wide(row[0]), wide(row[rows.binary ? 0 : (rows.classes - 1) * rows.class_stride]));
    }
}

// Halves and sums of the items of a slice; `whole` unless it is a part of one.
inline void add_items(Slice& slice, int64_t rows, int64_t rows_per_item, bool whole, const Partial& into) {
    for (int64_t start = 0; start < rows; start += rows_per_item) {
        const int64_t end = start + rows_per_item < rows ? start + rows_per_item : rows;
        int64_t hash = 0, counted = 0, correct = 0;
        double nll = 0;
        for (int64_t n = start; n < end; ++n) {
            if (!(slice.flags[n] & VALID)) continue;
            hash = (int64_t)((uint64_t)hash + (uint64_t)slice.mixed[n]);
            counted += 1;
            correct += (slice.flags[n] & CORRECT) != 0;
            nll += slice.columns[NLL][n];
        }
        const int half = whole ? half_of(hash) : 0;
        for (int64_t n = start; n < end; ++n) slice.second[n] = -half;
        into.halves[half] += counted;
        if (!whole) {
            into.part[0] = hash, into.part[1] = counted, into.part[2] = correct, into.part_nll[0] = nll;
            continue;
        }
        into.items[0] += counted > 0;
        into.items[1] += counted * counted;
        into.items[2] += counted * correct;
        into.items[3] += correct * correct;
        into.item_sums[0] += nll * nll;
        into.item_sums[1] += (double)counted * nll;
    }
}

inline void add_slice(Slice& slice, int64_t rows, const Sizes& sizes, const Partial& into) {
    for (int64_t n = 0; n < rows; ++n) {
        const int flags = slice.flags[n];
        for (int bit = 0; bit < NUM_FLAGS; ++bit) into.flags[bit] += (flags >> bit) & 1;
        if (!(flags & VALID)) continue;
        const int32_t cell = slice.cell[n];
        into.cells[cell] += 1;
        into.cell_confidence[cell] += slice.columns[CONFIDENCE][n];
        into.cell_nll[cell] += slice.columns[NLL][n];
        into.margins[slice.margin_cell[n]] += 1;
        into.flags[NUM_FLAGS] += slice.has_margin[n] != 0;
    }
    const Floats zero{};
    for (int column = 0; column < NUM_COLUMNS; ++column) {
        const int32_t* mask = column == MARGIN ? slice.has_margin : slice.valid;
        Sum sum;
        for (int64_t n = 0; n < rows; n += LANES) sum.add(load(mask + n) ? load(slice.columns[column] + n) : zero);
        into.columns[column] = sum.total();
    }
    for (int t = 0; t < 2 * GRID_SIZE; ++t) {
        Sum first, second;
        for (int64_t n = 0; n < rows; n += LANES) {
            const Ints valid = load(slice.valid + n), half = load(slice.second + n);
            const Floats value = load(slice.grid[t] + n);
            first.add(valid & ~half ? value : zero);
            second.add(valid & half ? value : zero);
        }
        into.grid[t] = first.total();
        into.grid[2 * GRID_SIZE + t] = second.total();
    }
}

template <class E>
void count_slice(const Setup& setup, const Batch& batch, const Cuts& cuts, int64_t number, const Partial& into,
                 Round& round, int64_t place) {
    const Source& source = batch.source;
    const int64_t begin = cuts.first(number), num_rows = cuts.count(number);
    Rows<E> rows(source, setup.binary);
    Thread& thread = own_thread();
    Slice& slice = *thread.slice.get(1);
    float* scratch = thread.scratch.get(rows.scratch());
    int32_t by_target[LANES];
    Tile tile{};
    for (int64_t at = 0; at < num_rows; at += LANES) {
        rows.place(source, begin + at, num_rows - at);
        for (int lane = 0; lane < LANES; ++lane) {
            const int64_t target = lane < rows.count ? source.target[begin + at + lane] : 0;
            by_target[lane] = lane < rows.count ? target_flags(setup, rows.classes, target) : 0;
            rows.target[lane] = by_target[lane] == VALID ? (int32_t)target : 0;
        }
        if (rows.by_lane) reduce_lanes(rows, scratch, tile);
        else for (int lane = 0; lane < rows.count; ++lane) reduce_row(rows, lane, scratch, tile);
        write_rows(setup, rows, by_target, tile, at, slice);
        if (batch.row_nll)
            for (int lane = 0; lane < rows.count; ++lane) {
                const bool hopeless = slice.flags[at + lane] & NOT_FINITE;
                batch.row_nll[begin + at + lane] = hopeless ? hopeless_nll(rows, lane) : slice.columns[NLL][at + lane];
            }
    }
    add_items(slice, num_rows, cuts.parts == 1 ? source.rows_per_item : num_rows, cuts.parts == 1, into);
    add_slice(slice, num_rows, Sizes(setup.bins), into);
    std::memcpy(round.nll.data + place, slice.columns[NLL], num_rows * sizeof(float));
    std::memcpy(round.predicted.data + place, slice.predicted, num_rows * sizeof(int32_t));
    std::memcpy(round.flags.data + place, slice.flags, num_rows);
    if (batch.row_predicted) std::memcpy(batch.row_predicted + begin, slice.predicted, num_rows * sizeof(int32_t));
    if (batch.row_flags) std::memcpy(batch.row_flags + begin, slice.flags, num_rows);
    if (batch.row_grid)
        for (int t = 0; t < 2 * GRID_SIZE; ++t)
            std::memcpy(batch.row_grid + t * cuts.total + begin, slice.grid[t], num_rows * sizeof(float));
}

// An item of which some parts have been added.
struct Item {
    int64_t hash = 0, counted = 0, correct = 0;
    double nll = 0, grid[2 * GRID_SIZE + 1] = {};
};

inline void fold(const Setup& setup, const Batch& batch, const Partial& part, const Sizes& sizes, bool whole, bool ends,
                 Item& item) {
    int64_t* counts = batch.counts;
    double* sums = batch.sums;
    for (int flag = 0; flag <= NUM_FLAGS; ++flag) counts[flag] += part.flags[flag];
    for (int column = 0; column < NUM_COLUMNS; ++column) sums[column] += part.columns[column];
    for (int64_t cell = 0; cell < 2 * sizes.bins; ++cell) {
        counts[setup.count_cells + cell] += part.cells[cell];
        sums[setup.sum_cells + cell] += part.cell_confidence[cell];
        sums[setup.sum_cells + 2 * sizes.bins + cell] += part.cell_nll[cell];
    }
    for (int cell = 0; cell <= MARGIN_EDGES; ++cell) counts[setup.count_margin + cell] += part.margins[cell];
    double* grid = sums + setup.sum_grid;  // (2, T) NLL, (2, T) slope
    const auto add_grid = [&](int half, const double* from) {
        for (int t = 0; t < GRID_SIZE; ++t) {
            grid[half * GRID_SIZE + t] += from[t];
            grid[(2 + half) * GRID_SIZE + t] += from[GRID_SIZE + t];
        }
    };
    if (whole) {
        for (int k = 0; k < 4; ++k) counts[9 + k] += part.items[k];
        sums[5] += part.item_sums[0];
        sums[6] += part.item_sums[1];
        if (GRID_SIZE == 0) return;
        for (int half = 0; half < 2; ++half) {
            counts[setup.count_half + half] += part.halves[half];
            add_grid(half, part.grid + half * 2 * GRID_SIZE);
        }
        return;
    }
    item.hash = (int64_t)((uint64_t)item.hash + (uint64_t)part.part[0]);
    item.counted += part.part[1], item.correct += part.part[2], item.nll += part.part_nll[0];
    for (int t = 0; t < 2 * GRID_SIZE; ++t) item.grid[t] += part.grid[t];
    if (!ends) return;
    const int64_t values[] = {item.counted > 0, item.counted * item.counted, item.counted * item.correct,
                              item.correct * item.correct};
    for (int k = 0; k < 4; ++k) counts[9 + k] += values[k];
    sums[5] += item.nll * item.nll;
    sums[6] += (double)item.counted * item.nll;
    if (GRID_SIZE > 0) {
        counts[setup.count_half + half_of(item.hash)] += item.counted;
        add_grid(half_of(item.hash), item.grid);
    }
    item = Item{};
}

// Sums by target class, or by predicted class.
inline void add_classes(const Setup& setup, const Batch& batch, const Cuts& cuts, const Round& round, int64_t first,
                        int64_t last, bool by_target) {
    int64_t* rows = batch.counts + setup.count_class;
    int64_t *predicted = rows + batch.source.classes, *correct = predicted + batch.source.classes;
    double* nll = batch.sums + setup.sum_class;
    for (int64_t slice = first; slice < last; ++slice) {
        const int64_t place = (slice - first) * cuts.rows, begin = cuts.first(slice), num_rows = cuts.count(slice);
        for (int64_t k = 0; k < num_rows; ++k) {
            const int flags = round.flags.data[place + k];
            if (!(flags & VALID)) continue;
            if (by_target) {
                const int64_t label = batch.source.target[begin + k];
                rows[label] += 1;
                correct[label] += (flags & CORRECT) != 0;
                nll[label] += round.nll.data[place + k];
            } else predicted[round.predicted.data[place + k]] += 1;
        }
    }
}

template <class E> void count_batch(const Setup& setup, const Batch& batch) {
    const Source& source = batch.source;
    if (source.items * source.rows_per_item * source.classes == 0) return;
    const Cuts cuts(source.items, source.rows_per_item, source.classes);
    const Sizes sizes(setup.bins);
    Round& round = own_round();
    const int64_t in_round = cuts.slices < ROUND ? cuts.slices : ROUND;
    round.nll.get(in_round * cuts.rows);
    round.predicted.get(in_round * cuts.rows);
    round.flags.get(in_round * cuts.rows);
    int64_t* longs = round.longs.get(in_round * sizes.longs);
    double* doubles = round.doubles.get(in_round * sizes.doubles);
    const int threads = cuts.threads(source);
    Item item;
    for (int64_t first = 0; first < cuts.slices; first += ROUND) {
        const int64_t last = first + ROUND < cuts.slices ? first + ROUND : cuts.slices;
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
        for (int64_t slice = first; slice < last; ++slice) {
            const int64_t k = slice - first;
            std::memset(longs + k * sizes.longs, 0, sizes.longs * sizeof(int64_t));
            std::memset(doubles + k * sizes.doubles, 0, sizes.doubles * sizeof(double));
            const Partial part(longs + k * sizes.longs, doubles + k * sizes.doubles, sizes);
            count_slice<E>(setup, batch, cuts, slice, part, round, k * cuts.rows);
        }
        for (int64_t slice = first; slice < last; ++slice) {
            const int64_t k = slice - first;
            fold(setup, batch, Partial(longs + k * sizes.longs, doubles + k * sizes.doubles, sizes), sizes,
                 cuts.parts == 1, (slice + 1) % cuts.parts == 0, item);
        }
        if (!setup.per_class) continue;
#pragma omp parallel for num_threads(2) schedule(static) if (threads > 1)
        for (int which = 0; which < 2; ++which) add_classes(setup, batch, cuts, round, first, last, which == 0);
    }
}
