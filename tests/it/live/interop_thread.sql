-- Rows of a thread that Python LangGraph 1.2.22 wrote: two nodes, messages, reducers. The reader is tried on these
-- before it is trusted with ours.
insert into checkpoints (thread_id, checkpoint_ns, checkpoint_id, parent_checkpoint_id, checkpoint, metadata) values
  ('t-basic', '', '1f1e533b-1e75-67ed-bfff-4b5d0ac8932d', null,
   '{"v": 4, "id": "1f1e533b-1e75-67ed-bfff-4b5d0ac8932d", "ts": "2026-11-20T22:42:41.601728+00:00", "versions_seen": {"__input__": {}}, "channel_values": {}, "channel_versions": {"__start__": "00000000000000000000000000000001.0.4947364810876027"}, "updated_channels": ["__start__"]}',
   '{"step": -1, "trace": "abc", "source": "input", "parents": {}, "user_tier": "gold"}');
insert into checkpoints (thread_id, checkpoint_ns, checkpoint_id, parent_checkpoint_id, checkpoint, metadata) values
  ('t-basic', '', '1f1e533b-1e8b-616a-8000-46c9aea0afb1', '1f1e533b-1e75-67ed-bfff-4b5d0ac8932d',
   '{"v": 4, "id": "1f1e533b-1e8b-616a-8000-46c9aea0afb1", "ts": "2026-11-20T22:42:41.610559+00:00", "versions_seen": {"__input__": {}, "__start__": {"__start__": "00000000000000000000000000000001.0.4947364810876027"}}, "channel_values": {"topic": "weather", "branch:to:agent": null}, "channel_versions": {"topic": "00000000000000000000000000000002.0.1530890573178666", "messages": "00000000000000000000000000000002.0.1530890573178666", "__start__": "00000000000000000000000000000002.0.1530890573178666", "branch:to:agent": "00000000000000000000000000000002.0.1530890573178666"}, "updated_channels": ["branch:to:agent", "messages", "topic"]}',
   '{"step": 0, "trace": "abc", "source": "loop", "parents": {}, "user_tier": "gold"}');
insert into checkpoints (thread_id, checkpoint_ns, checkpoint_id, parent_checkpoint_id, checkpoint, metadata) values
  ('t-basic', '', '1f1e533b-1e90-6f47-8001-48188a4243fe', '1f1e533b-1e8b-616a-8000-46c9aea0afb1',
   '{"v": 4, "id": "1f1e533b-1e90-6f47-8001-48188a4243fe", "ts": "2026-11-20T22:42:41.612969+00:00", "versions_seen": {"agent": {"branch:to:agent": "00000000000000000000000000000002.0.1530890573178666"}, "__input__": {}, "__start__": {"__start__": "00000000000000000000000000000001.0.4947364810876027"}}, "channel_values": {"topic": "weather", "total": 2, "branch:to:tool": null}, "channel_versions": {"items": "00000000000000000000000000000003.0.03745056734227714", "topic": "00000000000000000000000000000002.0.1530890573178666", "total": "00000000000000000000000000000003.0.03745056734227714", "messages": "00000000000000000000000000000003.0.03745056734227714", "__start__": "00000000000000000000000000000002.0.1530890573178666", "branch:to:tool": "00000000000000000000000000000003.0.03745056734227714", "branch:to:agent": "00000000000000000000000000000003.0.03745056734227714"}, "updated_channels": ["branch:to:tool", "items", "messages", "total"]}',
   '{"step": 1, "trace": "abc", "source": "loop", "parents": {}, "user_tier": "gold"}');
insert into checkpoints (thread_id, checkpoint_ns, checkpoint_id, parent_checkpoint_id, checkpoint, metadata) values
  ('t-basic', '', '1f1e533b-1e9b-6465-8002-809bc03babe5', '1f1e533b-1e90-6f47-8001-48188a4243fe',
   '{"v": 4, "id": "1f1e533b-1e9b-6465-8002-809bc03babe5", "ts": "2026-11-20T22:42:41.617197+00:00", "versions_seen": {"tool": {"branch:to:tool": "00000000000000000000000000000003.0.03745056734227714"}, "agent": {"branch:to:agent": "00000000000000000000000000000002.0.1530890573178666"}, "__input__": {}, "__start__": {"__start__": "00000000000000000000000000000001.0.4947364810876027"}}, "channel_values": {"topic": "weather", "total": 7}, "channel_versions": {"note": "00000000000000000000000000000004.0.5009105624878686", "items": "00000000000000000000000000000004.0.5009105624878686", "topic": "00000000000000000000000000000002.0.1530890573178666", "total": "00000000000000000000000000000004.0.5009105624878686", "messages": "00000000000000000000000000000004.0.5009105624878686", "__start__": "00000000000000000000000000000002.0.1530890573178666", "branch:to:tool": "00000000000000000000000000000004.0.5009105624878686", "branch:to:agent": "00000000000000000000000000000003.0.03745056734227714"}, "updated_channels": ["items", "messages", "note", "total"]}',
   '{"step": 2, "trace": "abc", "source": "loop", "parents": {}, "user_tier": "gold"}');
insert into checkpoint_blobs (thread_id, checkpoint_ns, channel, version, type, blob) values
  ('t-basic', '', '__start__', '00000000000000000000000000000001.0.4947364810876027', 'msgpack',
   '\x82a86d6573736167657391c78c0594bd6c616e67636861696e5f636f72652e6d657373616765732e68756d616eac48756d616e4d65737361676586a7636f6e74656e74a568656c6c6fb16164646974696f6e616c5f6b776172677380b1726573706f6e73655f6d6574616461746180a474797065a568756d616ea46e616d65c0a26964a26831b36d6f64656c5f76616c69646174655f6a736f6ea5746f706963a777656174686572');
insert into checkpoint_blobs (thread_id, checkpoint_ns, channel, version, type, blob) values
  ('t-basic', '', 'items', '00000000000000000000000000000003.0.03745056734227714', 'msgpack',
   '\x91a56167656e74');
insert into checkpoint_blobs (thread_id, checkpoint_ns, channel, version, type, blob) values
  ('t-basic', '', 'items', '00000000000000000000000000000004.0.5009105624878686', 'msgpack',
   '\x92a56167656e74a4746f6f6c');
insert into checkpoint_blobs (thread_id, checkpoint_ns, channel, version, type, blob) values
  ('t-basic', '', 'messages', '00000000000000000000000000000002.0.1530890573178666', 'msgpack',
   '\x91c78c0594bd6c616e67636861696e5f636f72652e6d657373616765732e68756d616eac48756d616e4d65737361676586a7636f6e74656e74a568656c6c6fb16164646974696f6e616c5f6b776172677380b1726573706f6e73655f6d6574616461746180a474797065a568756d616ea46e616d65c0a26964a26831b36d6f64656c5f76616c69646174655f6a736f6e');
insert into checkpoint_blobs (thread_id, checkpoint_ns, channel, version, type, blob) values
  ('t-basic', '', 'messages', '00000000000000000000000000000003.0.03745056734227714', 'msgpack',
   '\x92c78c0594bd6c616e67636861696e5f636f72652e6d657373616765732e68756d616eac48756d616e4d65737361676586a7636f6e74656e74a568656c6c6fb16164646974696f6e616c5f6b776172677380b1726573706f6e73655f6d6574616461746180a474797065a568756d616ea46e616d65c0a26964a26831b36d6f64656c5f76616c69646174655f6a736f6ec801180594ba6c616e67636861696e5f636f72652e6d657373616765732e6169a941494d65737361676589a7636f6e74656e74a26869b16164646974696f6e616c5f6b776172677380b1726573706f6e73655f6d6574616461746181aa6d6f64656c5f6e616d65a16da474797065a26169a46e616d65c0a26964a26131aa746f6f6c5f63616c6c739184a46e616d65a6736561726368a46172677381a171a178a26964a663616c6c5f31a474797065a9746f6f6c5f63616c6cb2696e76616c69645f746f6f6c5f63616c6c7390ae75736167655f6d6574616461746183ac696e7075745f746f6b656e7303ad6f75747075745f746f6b656e7304ac746f74616c5f746f6b656e7307b36d6f64656c5f76616c69646174655f6a736f6e');
insert into checkpoint_blobs (thread_id, checkpoint_ns, channel, version, type, blob) values
  ('t-basic', '', 'messages', '00000000000000000000000000000004.0.5009105624878686', 'msgpack',
   '\x93c78c0594bd6c616e67636861696e5f636f72652e6d657373616765732e68756d616eac48756d616e4d65737361676586a7636f6e74656e74a568656c6c6fb16164646974696f6e616c5f6b776172677380b1726573706f6e73655f6d6574616461746180a474797065a568756d616ea46e616d65c0a26964a26831b36d6f64656c5f76616c69646174655f6a736f6ec801180594ba6c616e67636861696e5f636f72652e6d657373616765732e6169a941494d65737361676589a7636f6e74656e74a26869b16164646974696f6e616c5f6b776172677380b1726573706f6e73655f6d6574616461746181aa6d6f64656c5f6e616d65a16da474797065a26169a46e616d65c0a26964a26131aa746f6f6c5f63616c6c739184a46e616d65a6736561726368a46172677381a171a178a26964a663616c6c5f31a474797065a9746f6f6c5f63616c6cb2696e76616c69645f746f6f6c5f63616c6c7390ae75736167655f6d6574616461746183ac696e7075745f746f6b656e7303ad6f75747075745f746f6b656e7304ac746f74616c5f746f6b656e7307b36d6f64656c5f76616c69646174655f6a736f6ec7b90594bc6c616e67636861696e5f636f72652e6d657373616765732e746f6f6cab546f6f6c4d65737361676589a7636f6e74656e74a23432b16164646974696f6e616c5f6b776172677380b1726573706f6e73655f6d6574616461746180a474797065a4746f6f6ca46e616d65a6736561726368a26964a27431ac746f6f6c5f63616c6c5f6964a663616c6c5f31a86172746966616374c0a6737461747573a773756363657373b36d6f64656c5f76616c69646174655f6a736f6e');
insert into checkpoint_blobs (thread_id, checkpoint_ns, channel, version, type, blob) values
  ('t-basic', '', 'note', '00000000000000000000000000000004.0.5009105624878686', 'msgpack',
   '\x81a16101');
insert into checkpoint_writes (thread_id, checkpoint_ns, checkpoint_id, task_id, task_path, idx, channel, type, blob) values
  ('t-basic', '', '1f1e533b-1e75-67ed-bfff-4b5d0ac8932d', '714ff8a3-00e3-e20c-66ee-fe010b657ce2', '~__pregel_pull, __start__', 0, 'messages', 'msgpack',
   '\x91c78c0594bd6c616e67636861696e5f636f72652e6d657373616765732e68756d616eac48756d616e4d65737361676586a7636f6e74656e74a568656c6c6fb16164646974696f6e616c5f6b776172677380b1726573706f6e73655f6d6574616461746180a474797065a568756d616ea46e616d65c0a26964a26831b36d6f64656c5f76616c69646174655f6a736f6e');
insert into checkpoint_writes (thread_id, checkpoint_ns, checkpoint_id, task_id, task_path, idx, channel, type, blob) values
  ('t-basic', '', '1f1e533b-1e75-67ed-bfff-4b5d0ac8932d', '714ff8a3-00e3-e20c-66ee-fe010b657ce2', '~__pregel_pull, __start__', 1, 'topic', 'msgpack',
   '\xa777656174686572');
insert into checkpoint_writes (thread_id, checkpoint_ns, checkpoint_id, task_id, task_path, idx, channel, type, blob) values
  ('t-basic', '', '1f1e533b-1e75-67ed-bfff-4b5d0ac8932d', '714ff8a3-00e3-e20c-66ee-fe010b657ce2', '~__pregel_pull, __start__', 2, 'branch:to:agent', 'null',
   '\x');
insert into checkpoint_writes (thread_id, checkpoint_ns, checkpoint_id, task_id, task_path, idx, channel, type, blob) values
  ('t-basic', '', '1f1e533b-1e8b-616a-8000-46c9aea0afb1', 'd25a3369-22da-9798-555f-2473d795a953', '~__pregel_pull, agent', 0, 'messages', 'msgpack',
   '\x91c801180594ba6c616e67636861696e5f636f72652e6d657373616765732e6169a941494d65737361676589a7636f6e74656e74a26869b16164646974696f6e616c5f6b776172677380b1726573706f6e73655f6d6574616461746181aa6d6f64656c5f6e616d65a16da474797065a26169a46e616d65c0a26964a26131aa746f6f6c5f63616c6c739184a46e616d65a6736561726368a46172677381a171a178a26964a663616c6c5f31a474797065a9746f6f6c5f63616c6cb2696e76616c69645f746f6f6c5f63616c6c7390ae75736167655f6d6574616461746183ac696e7075745f746f6b656e7303ad6f75747075745f746f6b656e7304ac746f74616c5f746f6b656e7307b36d6f64656c5f76616c69646174655f6a736f6e');
insert into checkpoint_writes (thread_id, checkpoint_ns, checkpoint_id, task_id, task_path, idx, channel, type, blob) values
  ('t-basic', '', '1f1e533b-1e8b-616a-8000-46c9aea0afb1', 'd25a3369-22da-9798-555f-2473d795a953', '~__pregel_pull, agent', 1, 'total', 'msgpack',
   '\x02');
insert into checkpoint_writes (thread_id, checkpoint_ns, checkpoint_id, task_id, task_path, idx, channel, type, blob) values
  ('t-basic', '', '1f1e533b-1e8b-616a-8000-46c9aea0afb1', 'd25a3369-22da-9798-555f-2473d795a953', '~__pregel_pull, agent', 2, 'items', 'msgpack',
   '\x91a56167656e74');
insert into checkpoint_writes (thread_id, checkpoint_ns, checkpoint_id, task_id, task_path, idx, channel, type, blob) values
  ('t-basic', '', '1f1e533b-1e8b-616a-8000-46c9aea0afb1', 'd25a3369-22da-9798-555f-2473d795a953', '~__pregel_pull, agent', 3, 'branch:to:tool', 'null',
   '\x');
insert into checkpoint_writes (thread_id, checkpoint_ns, checkpoint_id, task_id, task_path, idx, channel, type, blob) values
  ('t-basic', '', '1f1e533b-1e90-6f47-8001-48188a4243fe', '11d8d983-bb87-f5c2-7441-40748ea1fe46', '~__pregel_pull, tool', 0, 'messages', 'msgpack',
   '\x91c7b90594bc6c616e67636861696e5f636f72652e6d657373616765732e746f6f6cab546f6f6c4d65737361676589a7636f6e74656e74a23432b16164646974696f6e616c5f6b776172677380b1726573706f6e73655f6d6574616461746180a474797065a4746f6f6ca46e616d65a6736561726368a26964a27431ac746f6f6c5f63616c6c5f6964a663616c6c5f31a86172746966616374c0a6737461747573a773756363657373b36d6f64656c5f76616c69646174655f6a736f6e');
insert into checkpoint_writes (thread_id, checkpoint_ns, checkpoint_id, task_id, task_path, idx, channel, type, blob) values
  ('t-basic', '', '1f1e533b-1e90-6f47-8001-48188a4243fe', '11d8d983-bb87-f5c2-7441-40748ea1fe46', '~__pregel_pull, tool', 1, 'total', 'msgpack',
   '\x05');
insert into checkpoint_writes (thread_id, checkpoint_ns, checkpoint_id, task_id, task_path, idx, channel, type, blob) values
  ('t-basic', '', '1f1e533b-1e90-6f47-8001-48188a4243fe', '11d8d983-bb87-f5c2-7441-40748ea1fe46', '~__pregel_pull, tool', 2, 'items', 'msgpack',
   '\x91a4746f6f6c');
insert into checkpoint_writes (thread_id, checkpoint_ns, checkpoint_id, task_id, task_path, idx, channel, type, blob) values
  ('t-basic', '', '1f1e533b-1e90-6f47-8001-48188a4243fe', '11d8d983-bb87-f5c2-7441-40748ea1fe46', '~__pregel_pull, tool', 3, 'note', 'msgpack',
   '\x81a16101');
