//! Tests of streams from outside: drivers against the suite, the embedded store against crashes, damage and full
//! disks, the Redis and NATS drivers against servers that are killed, stopped and refuse.
//!
//! What users of other stream libraries expect, or were let down by, and the tests that hold it here. A name without
//! a place is a case of the suite, which every driver passes; `cli`, `http`, `facade` and `config` are tests of those
//! crates.
//!
//! - topics have names and files of their own, whatever is in a name:
//!   `topics_are_listed_with_what_they_hold`,
//!   `embedded::topics_that_differ_in_case_or_script_have_files_of_their_own`,
//!   `on_redis::serving::tools_of_the_server_show_topics_and_groups`
//! - how often an event is delivered is the topic's, else the default:
//!   `operating::a_topic_that_says_nothing_else_is_kept_by_the_defaults`, `config:
//!   topics_say_what_differs_from_the_defaults`
//! - texts, numbers, nothing, marks of other systems and all bytes come back as they were:
//!   `events_come_back_as_they_were_published`, `transfer: marks_in_texts_and_large_numbers_stay_what_they_are`,
//!   `http: bytes_come_back_as_they_went_in`, `large_payloads_are_whole`
//! - publishing, delivering, settling and trimming are told, each once, with what they took:
//!   `facade: what_happens_to_a_topic_is_told_and_counted`
//! - an ordered topic yields 1, 2, 2, 2, 3 where 2 fails twice; ten come in their order:
//!   `events_without_a_key_come_one_after_the_other`, `every_event_is_settled_once_and_in_the_order_of_its_key`
//! - of a key one event is under way, whoever consumes, and only the key that fails waits:
//!   `no_two_consumers_have_one_key`, `only_the_key_that_fails_is_parked`,
//!   `a_burial_lets_the_next_of_its_key_go_on`
//! - an acknowledgement is for one event of one group:
//!   `what_was_acknowledged_is_not_delivered_again`, `every_group_gets_every_event_in_order`
//! - the last failure makes one dead letter with its story, and nothing stays pending:
//!   `the_last_failure_makes_one_dead_letter_with_its_story`, `each_group_gives_up_for_itself`
//! - dead letters are under the topic's own name for them, or the default one:
//!   `the_last_failure_makes_one_dead_letter_with_its_story`, `dead_letters_are_listed_newest_first_and_by_filter`
//! - topics are listed without what else a store holds, however many there are:
//!   `dead_letters_are_no_topic_and_not_trimmed_with_one`,
//!   `operating::more_topics_than_files_may_be_open_are_listed_and_hold_what_they_should`
//! - who consumes need not be who published:
//!   `what_was_stored_outlives_the_driver`, `http: an_event_is_published_taken_and_acknowledged`
//! - of ten events the newest five are kept:
//!   `publishing_keeps_the_newest_events`
//! - two groups get all, in order, each for itself:
//!   `every_group_gets_every_event_in_order`
//! - a handler that fails, by an error or a panic, is called as often as it may, with waits between, and others go
//!   on:
//!   `consuming::a_handler_that_fails_is_called_as_often_as_it_may_and_others_go_on`,
//!   `an_event_that_failed_comes_back_after_its_wait`
//! - what a consumer had that was killed goes to another of its group:
//!   `what_nobody_settles_goes_to_another_consumer`,
//!   `on_redis::killed::what_a_killed_consumer_had_goes_to_another`, processes: `tests/it/consumers.rs`
//! - settling is explicit, acknowledging by itself is asked for, a stale or unknown delivery is a value:
//!   `consuming::automatic_acknowledgement_comes_before_the_handler`, `a_word_about_an_earlier_delivery_is_stale`,
//!   `what_is_not_there_is_said_to_be_unknown`, `an_extended_delivery_stays_where_it_is`
//! - giving up is one step: killed between, an event is never in both or in neither:
//!   `crashes::no_acknowledged_event_is_lost_however_a_process_is_killed`, `power_tests`, `on_redis::killed`
//! - trimming takes nothing that a group needs, unless it is told to, and says what it spared:
//!   `what_is_pending_is_kept`, `what_was_not_delivered_is_kept`, `force_takes_events_from_groups`,
//!   `a_dry_run_changes_nothing`, `http: trimming_spares_what_groups_have_not_settled_unless_told_otherwise`
//! - retention by count, age and bytes; at once, by itself and by command:
//!   `publishing_keeps_the_newest_events`, `maintenance_removes_what_is_old`, `bytes_are_bounded`,
//!   `operating::old_events_go_though_nobody_publishes`, `cli: topics_are_listed_shown_viewed_and_trimmed`
//! - publishing answers ids; an idempotency key stores once:
//!   `ids_grow_and_are_answered_in_order`, `an_idempotency_key_stores_an_event_once`
//! - dead letters: newest first, by pages; looked at, retried to their group, removed; none of their own:
//!   `dead_letters_are_listed_newest_first_and_by_filter`, `a_retry_goes_to_its_group_alone_and_begins_anew`,
//!   `purged_letters_are_gone`, `dead_letters_are_no_topic_and_not_trimmed_with_one`
//! - a group begins at the earliest, the latest, an id or a moment:
//!   `a_group_begins_where_it_is_told_to`, `a_group_that_is_there_stays_where_it_is`
//! - a consumer takes as many as it may and waits as long as it is told; told to stop, it finishes and leaves
//!   nothing pending:
//!   `no_more_events_come_than_asked_for`, `consuming::a_consumer_ends_after_as_many_deliveries_as_it_may_take`,
//!   `consuming::a_consumer_ends_when_nothing_comes_any_more`,
//!   `consuming::stopping_lets_handlers_finish_and_leaves_nothing_pending`, `cli:
//!   a_consumer_that_is_told_to_stop_finishes_what_it_has_and_leaves_nothing_pending`
//! - names with dots and of any script; an unknown topic of a strict store is refused before anything is asked:
//!   `name: names_with_dots_and_of_any_script_are_names`, `settings:
//!   a_strict_store_has_only_configured_topics_dots_included`,
//!   `operating::a_strict_store_asks_nothing_of_the_driver_for_other_topics`
//! - figures of a topic and its groups are those of the store:
//!   `lag_counts_what_is_not_settled`, `pending_events_are_listed_with_their_ages`, `http:
//!   metrics_say_how_streams_stand`
//! - a configuration that cannot be is refused at the start, with its place:
//!   `config: what_cannot_be_is_told_with_its_place`, `settings:
//!   settings_that_contradict_themselves_name_their_topic`

mod after_commit;
mod conformance;
mod consuming;
mod crashes;
mod damage;
mod embedded;
mod full;
mod harness;
mod memory;
mod memory_state;
mod on_nats;
mod on_redis;
mod operating;
